"""The model card (README.md) of an exported model."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import math
import pathlib
import re
from typing import Any

import huggingface_hub
from huggingface_hub import repocard

import ppjax
from ppjax.models import base_model, checkpoint, gguf_reader
from ppjax.pages import templates

_HUB_IDS = {base_model.SMOLLM2: 'HuggingFaceTB/SmolLM2-135M-Instruct'}
_TAGS = ('pruned', 'roleplay', 'persona', 'ppjax')
_LICENSE_KEYS = ('license', 'license_name', 'license_link')
# What matrix units, tensor parallelism and quantised kernels like k to be
# divisible by.
_ALIGNMENTS = (256, 128, 64)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        base_name: the base model as the user named it.
        base_fingerprint: `loading.fingerprint` of it.
        license: front matter about the licence; see `inherited_license`.
        system_prompt: the persona prompt; '' if it is not known.
        chat_template: whether the tokenizer has one.
        num_layers: L.
        d_ff: F.
        keep: k.
        dtype: of the exported weights.
        parameters: before and after pruning.
        weight_bytes: of the weights before, in the same dtype, and after.
        command: what was run.
        sparsity: the share to remove that was asked for, if known.
        likelihood: the content of a run's `results/likelihood.json`, if measured.
        calibration: the data that the mask was learned on, if known.
        calibration_rows: how many, if known.
        settings: flags that the mask was learned with, one a line, if known.
        kept_blocks: numbers of the blocks kept, from 0 on, where whole blocks were
            removed and no channels; then k is how many.
        gains: whether kept channels were multiplied by learned gains.
        sent_prompt: the system message that the model is used under, where that is
            another one; '' is none.
        widths: how many channels each layer keeps, where the numbers differ.
    """

    base_name: str
    base_fingerprint: str
    license: Mapping[str, Any]
    system_prompt: str
    chat_template: bool
    num_layers: int
    d_ff: int
    keep: int
    dtype: str
    parameters: tuple[int, int]
    weight_bytes: tuple[int, int]
    command: str
    sparsity: float | None = None
    likelihood: Mapping[str, Any] | None = None
    calibration: str | None = None
    calibration_rows: int | None = None
    settings: str = ''
    kept_blocks: tuple[int, ...] | None = None
    gains: bool = False
    sent_prompt: str | None = None
    widths: tuple[int, ...] | None = None

    @property
    def kept(self) -> int:
        """Channels of all layers that are kept."""
        return sum(self.widths or [self.keep] * self.num_layers)

    @property
    def own_prompt(self) -> str:
        """What `persona.json` holds."""
        return self.system_prompt if self.sent_prompt is None else self.sent_prompt

    @property
    def removed(self) -> float:
        """The share of channels, or of blocks, that is gone."""
        if self.kept_blocks is not None:
            return 1 - self.keep / self.num_layers
        return 1 - self.kept / (self.d_ff * self.num_layers)


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What a card tells of finetuning after pruning.

    Attributes:
        trained: what was, with its verb: the start of a sentence.
        calibration: the data that it was finetuned on.
        calibration_rows: how many.
        likelihood: `models` and `heldout` as in `results/recovery.json`, if measured.
        settings: flags that it was finetuned with, one a line.
        sent_prompt: as of `Facts`.
        parameters: that do something, where narrower blocks are filled up with zeros.
    """

    trained: str
    calibration: str
    calibration_rows: int
    likelihood: Mapping[str, Any]
    settings: str
    sent_prompt: str | None = None
    parameters: int | None = None


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What a card tells of rows that were refitted after pruning.

    Attributes:
        target: what a layer was fitted to add: the end of a sentence.
        biased: whether biases were fitted too.
        dampings: that layers took, the least and the largest; None if none was
            refitted.
        layers_left: as they were, because no damping helped.
        calibration: the data that they were fitted on.
        calibration_rows: how many.
        own_answers: how many answers of the dense model besides.
        likelihood: `models` and `heldout` as in `results/compensation.json`, if
            measured.
        settings: flags that they were fitted with, one a line.
    """

    target: str
    biased: bool
    dampings: tuple[float, float] | None
    layers_left: int
    calibration: str
    calibration_rows: int
    own_answers: int
    likelihood: Mapping[str, Any]
    settings: str


@dataclasses.dataclass(frozen=True)
class Rival:
    """What a card tells of a model that another method pruned.

    Attributes:
        base_name: as of `Facts`.
        license: as of `Facts`.
        method: its name.
        amount: how much it removed, for people.
        parameters: of the dense model, and of what is left.
        stored: parameters in the files: more, where narrower layers are filled up.
        is_stock: whether stock loaders take the model.
        texts: that the method went by.
        sequences: how many of them.
        likelihood: `models` and `heldout`, if measured.
        command: what was run.
        settings: flags, one a line.
    """

    base_name: str
    license: Mapping[str, Any]
    method: str
    amount: str
    parameters: tuple[int, int]
    stored: int
    is_stock: bool
    texts: str
    sequences: int
    likelihood: Mapping[str, Any]
    command: str
    settings: str


def alignment(keep: int) -> int:
    """The largest of 256, 128 and 64 that divides k, or 1 if none does."""
    return next((size for size in _ALIGNMENTS if keep % size == 0), 1)


def hub_id(base_name: str) -> str:
    """The base model's name for the Hub: its id there, or a path's last part."""
    path = pathlib.Path(base_name).expanduser()
    if base_name in _HUB_IDS:
        return _HUB_IDS[base_name]
    if not path.exists() and re.fullmatch(r'[\w.-]+/[\w.-]+', base_name):
        return base_name
    return path.resolve().name


def inherited_license(reader: checkpoint.CheckpointReader) -> dict[str, Any]:
    """What the base says of its licence, as keys of a card's front matter.

    Read from a GGUF's `general.license...` or a directory's README.md; empty where
    neither tells.
    """
    found: dict[str, Any] = {}
    if isinstance(reader, gguf_reader.GgufReader):
        keys = ('general.license', 'general.license.name', 'general.license.link')
        for name, key in zip(_LICENSE_KEYS, keys, strict=True):
            found[name] = reader.metadata(key)
    else:
        front_matter = _front_matter_of(reader.path)
        found = {name: front_matter.get(name) for name in _LICENSE_KEYS}
    return {
        name: value
        for name, value in found.items()
        if (isinstance(value, str) and value)
        or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    }


def named_base(folder: pathlib.Path) -> str | None:
    """The one base model that a directory's README.md names, if it does."""
    found = _front_matter_of(folder).get('base_model')
    if isinstance(found, list) and len(found) == 1:
        [found] = found
    return found if isinstance(found, str) and found else None


def _front_matter_of(folder: pathlib.Path) -> dict[str, Any]:
    found = None
    if (card := folder / 'README.md').is_file():
        # YAML has errors of its own kinds; a damaged card tells nothing.
        with contextlib.suppress(Exception):
            found = repocard.metadata_load(card)
    return found if isinstance(found, dict) else {}


def render(facts: Facts) -> str:
    """The card: YAML front matter, then Markdown.

    Texts from outside stand in quoted YAML and in code fences longer than any run
    of backticks in them, so they cannot end the front matter, open a heading or
    turn into links.
    """
    return _rendered(
        'card.md.jinja',
        facts=facts,
        front_matter=_front_matter(facts.base_name, facts.license, _TAGS),
        version=ppjax.__version__,
    )


def _rendered(name: str, **values: Any) -> str:
    template = templates.load(
        __package__,
        name,
        alignment=alignment,
        code=_code,
        fenced=_fenced,
        hub_id=hub_id,
        last_part=_last_part,
        nll_table=_nll_table,
    )
    text = template.render(values) + '\n'
    # A lone surrogate cannot be written as UTF-8.
    return text.encode('utf-8', 'replace').decode('utf-8')


def bare(base_name: str, license: Mapping[str, Any]) -> str:
    """A card of a model of which only its base and licence are known."""
    return (
        f'{_front_matter(base_name, license, _TAGS[1:])}\n\n'
        f'# {_code(hub_id(base_name))}, finetuned for one persona\n'
    )


def with_recovery(card: str, facts: Recovery) -> str:
    """A card with what was done to its model after it was written."""
    return _rendered('recovery.md.jinja', card=card, facts=facts)


def with_reconstruction(card: str, facts: Reconstruction) -> str:
    """A card with how rows of its model were refitted after it was written."""
    return _rendered('reconstruction.md.jinja', card=card, facts=facts)


def of_rival(facts: Rival) -> str:
    """The card of a model that another method pruned."""
    front_matter = _front_matter(facts.base_name, facts.license, ('pruned', 'ppjax'))
    return _rendered('rival.md.jinja', facts=facts, front_matter=front_matter)


def _front_matter(
    base_name: str, license: Mapping[str, Any], tags: Sequence[str]
) -> str:
    data = huggingface_hub.ModelCardData(
        base_model=hub_id(base_name),
        base_model_relation='finetune',
        library_name='transformers',
        pipeline_tag='text-generation',
        tags=list(tags),
        **license,
    ).to_yaml()
    return f'---\n{data}\n---'


def _nll_table(results: Mapping[str, Any], names: str) -> str:
    """Nats per token of every model, or '' where there are no numbers.

    Args:
        results: with `models`, and perhaps `heldout`.
        names: a sentence on what the models are.
    """
    models = results.get('models')
    rows = []
    for name, entry in models.items() if isinstance(models, Mapping) else ():
        nll = entry.get('nll') if isinstance(entry, Mapping) else entry
        if isinstance(nll, int | float) and math.isfinite(nll):
            rows.append(f'| {_cell(name)} | {nll:.4f} |')
    if not rows:
        return ''
    heldout = results.get('heldout')
    heldout = heldout if isinstance(heldout, Mapping) else {}
    counts = [
        f'{heldout[key]:,} {unit}'
        for key, unit in (('rows', 'answers'), ('answer_tokens', 'tokens'))
        if isinstance(heldout.get(key), int)
    ]
    source = heldout.get('source')
    where = f' on {_code(_last_part(source))}' if isinstance(source, str) else ''
    size = f' ({", ".join(counts)})' if counts else ''
    return '\n'.join(
        [
            (
                f'Mean negative log-likelihood of an answer token in the persona{where}'
                f'{size}; lower is better. {names}'
            ),
            '',
            '| model | nats per token |',
            '|---|---|',
            *rows,
        ]
    )


def _last_part(source: str) -> str:
    """Cards are published: an absolute path would tell whose machine it was."""
    return pathlib.PurePath(source).name if source.startswith(('/', '~')) else source


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall('`+', text)), default=0)
    return '`' * max(least, longest + 1)


def _fenced(text: str, language: str) -> str:
    fence = _fence(text, 3)
    return f'{fence}{language}\n{text.strip()}\n{fence}'


def _code(text: str) -> str:
    """Inline code on one line; the spaces are part of Markdown's rule."""
    text = ' '.join(text.split())
    fence = _fence(text, 1)
    return f'{fence} {text} {fence}' if '`' in text else f'{fence}{text}{fence}'


def _cell(text: str) -> str:
    # In a table even code ends at a bar.
    return _code(text).replace('|', '\\|')

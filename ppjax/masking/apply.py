"""A model ready to talk as its persona: weights, mask, tokenizer and prompt."""

from collections.abc import Callable
import dataclasses
import pathlib

import huggingface_hub
from huggingface_hub import errors as hub_errors
import jax
import transformers

from ppjax.base import errors, json_lines
from ppjax.data import chat, stop_tokens
from ppjax.masking import pmask
from ppjax.models import base_model as base_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import int8_head, loading
from ppjax.models import masks as masks_lib

# Beside an exported model's weights: {"system_prompt": ...}.
PERSONA_FILE = 'persona.json'


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        base: what it was read from.
        decoder: its weights; where a mask drops blocks, without these.
        masks: those that are applied as it runs.
        tokenizer: that comes with the weights.
        system_prompt: of the mask file or the exported model; '' if there is none.
    """

    base: base_lib.BaseModel
    decoder: decoder_lib.Decoder
    masks: masks_lib.Masks
    tokenizer: transformers.PreTrainedTokenizerBase
    system_prompt: str

    def renderer(self, date: str) -> chat.ChatRenderer:
        """Its chat template, told a date."""
        return chat.ChatRenderer(
            self.tokenizer, date=date, vocab_size=self.decoder.cfg.vocab_size
        )

    def stop_ids(self) -> frozenset[int]:
        """The tokens that end its answers."""
        return stop_tokens.stop_ids(self.base.generation_config(), self.tokenizer)


def load_masked(
    *,
    base_model: str | None = None,
    mask_path: str | None = None,
    mask_sparsity: float | None = None,
    model: str | None = None,
    dtype: jax.typing.DTypeLike,
    int8_base: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadedModel:
    """Loads what `--model`, or `--base_model` and `--mask`, name.

    Args:
        base_model: see `base_model.open_base_model`. With a mask, by default the
            base that the mask was learned on.
        mask_path: a `.pmask` to apply to the base; None for the dense model.
        mask_sparsity: at which it is wanted; None for the one it names.
        model: a Hugging Face directory, exported or not, instead of the two.
        dtype: of the weights.
        int8_base: whether they are rounded to int8, for what only gives answers.
        mesh: that they are loaded onto; None for one device.
        progress: called with (tensors read, tensors in all).

    Raises:
        InputError: if something is absent or unreadable, or the mask was learned on
            another base, or for other sparsities.
        ValueError: if `model` comes with one of the other two, or all are None.
    """
    if (model is None) == (base_model is None and mask_path is None):
        raise ValueError(
            'wanted either model or base_model and mask_path, got '
            f'model={model!r}, base_model={base_model!r}, mask_path={mask_path!r}.'
        )
    masks = masks_lib.DENSE
    read: base_lib.BaseModel | None = None
    if model is not None:
        base, system_prompt = open_exported(model)
    elif mask_path is not None:
        persona_mask = pmask.load(mask_path)
        base = (
            open_own_base(persona_mask.base_model, mask_path)
            if base_model is None
            else base_lib.open_base_model(base_model)
        )
        persona_mask.check_base(
            base.fingerprint(), base.config.num_layers, base.config.d_ff
        )
        if mask_sparsity is not None:
            persona_mask = persona_mask.at_sparsity(mask_sparsity)
        if persona_mask.granularity == pmask.BLOCKS:
            # Absent blocks cost nothing, and all that runs a decoder can run it.
            read = persona_mask.pruned(base)
        else:
            masks = persona_mask.decoder_masks()
        system_prompt = persona_mask.system_prompt
    else:
        assert base_model is not None
        base, system_prompt = base_lib.open_base_model(base_model), ''
    tokenizer = base.tokenizer()  # Before the weights: it fails sooner.
    read = read or base
    decoder = loading.load_decoder(
        read.reader,
        read.config,
        dtype=dtype,
        int8_matrices=int8_base,
        mesh=mesh,
        progress=progress,
    )
    decoder = int8_head.with_int8_head(decoder)
    return LoadedModel(base, decoder, masks, tokenizer, system_prompt)


def open_exported(name: str) -> tuple[base_lib.BaseModel, str]:
    """What `--model` names, without its weights.

    Returns:
        (its files, the persona prompt beside them or '').

    Raises:
        InputError: if it is no model directory.
    """
    path = pathlib.Path(name).expanduser()
    if not path.is_dir():
        raise errors.InputError(
            f'--model={name!r} is no directory; wanted an exported or other Hugging '
            'Face model directory (a .gguf file or Hub id goes to --base_model).'
        )
    base = base_lib.open_base_model(str(path))
    file = path / PERSONA_FILE
    if not file.exists():
        return base, ''
    system_prompt = json_lines.read_object(file).get('system_prompt')
    if not isinstance(system_prompt, str):
        raise errors.InputError(f'{file} holds no text under "system_prompt".')
    return base, system_prompt


def open_own_base(name: str, mask_path: str) -> base_lib.BaseModel:
    """The base that a mask file names, if it is on this machine.

    The file may come from anyone, and nothing is downloaded that the user did not
    name.

    Raises:
        InputError: if it is not there.
    """
    where = name
    if name != base_lib.SMOLLM2 and not pathlib.Path(name).expanduser().exists():
        try:
            where = huggingface_hub.snapshot_download(name, local_files_only=True)
        except (OSError, ValueError, hub_errors.HfHubHTTPError):
            raise errors.InputError(
                f'{mask_path} was learned on {name!r}, which is not on this machine; '
                'name the base with --base_model.'
            ) from None
    return dataclasses.replace(base_lib.open_base_model(where), name=name)

"""The story of `python -m ppjax.export`: open, slice, write, verify, record."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from ppjax.base import (
    atomic,
    errors,
    json_lines,
    locks,
    progress,
    run_directory,
    settings,
    versions,
)
from ppjax.exporting import cards, hf_export, model_card, published
from ppjax.exporting import config as config_lib
from ppjax.exporting import record as record_lib
from ppjax.exporting import source as source_lib
from ppjax.exporting import verify as verify_lib
from ppjax.exporting.gguf import export as gguf_export
from ppjax.exporting.gguf import source as gguf_source
from ppjax.masking import keep_indices, pmask
from ppjax.models import loading

_RECORD = 'results/export.json'


def export(cfg: config_lib.ExportConfig, *, again: bool = True) -> int:
    """Exports, verifies if asked to, and says what came out.

    Args:
        cfg: the settings.
        again: whether an export that stands, and was verified, is verified again.
    """
    if cfg.model is not None:
        _export_directory(cfg, pathlib.Path(cfg.model))
        return 0
    output = pathlib.Path(cfg.output_dir).expanduser()
    if not cfg.from_run:
        output.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(output, beside=True):
            _export(cfg, output, None, again=again)
            _write_card(cfg, output.parent)
        return 0
    if not output.is_dir():
        source_lib.require_run(cfg)
    with run_directory.visiting(output, makes=(_RECORD, f'{cards.FOLDER}/*')):
        # Of a run that is still learning, who holds it is said first.
        source_lib.require_run(cfg)
        later = _is_later_stage(output / 'hf') and not cfg.overwrite
        if cfg.gguf_types and later:
            progress.say(f"{output / 'hf'} is the run's model, and goes to GGUF.")
            _export_directory(cfg, output / 'hf')
        elif not (cfg.wants_card and later):
            _export(cfg, output / 'hf', output / _RECORD, again=again)
        _write_card(cfg, output)
        if cfg.wants_card and later:
            progress.say(
                'It carries the mask alone; what was refitted or recovered is in '
                f'{output / "hf"}.'
            )
    return 0


def _write_card(cfg: config_lib.ExportConfig, beside: pathlib.Path) -> None:
    """Writes the card that the settings ask for, if they do."""
    if cfg.wants_card:
        card = cards.write(cfg, source_lib.open_source(cfg), beside)
        progress.say(f'Card with the mask: {card}')


def _export_directory(cfg: config_lib.ExportConfig, path: pathlib.Path) -> None:
    """Writes a directory's model as GGUF."""
    found = gguf_source.of_directory(cfg, path)
    beside = path.expanduser().resolve().parent
    _export_gguf(cfg, found, pathlib.Path(cfg.output_dir or beside).expanduser())


def _export_gguf(
    cfg: config_lib.ExportConfig, source: gguf_export.Source, beside: pathlib.Path
) -> list[dict[str, Any]]:
    """Writes GGUF files to the folder gguf/ of another, and says so."""
    folder = beside / gguf_export.FOLDER
    made = gguf_export.export(
        source,
        folder,
        cfg.gguf_types,
        tolerance=cfg.verify_tolerance if cfg.verify else None,
        overwrite=cfg.overwrite,
        filled=cfg.gguf_widths == 'filled',
    )
    for entry in made:
        print(f'{folder / entry["file"]}  {entry["bytes"] / 1e6:.1f} MB')
    print('\n'.join(gguf_export.advice(source, folder, cfg.gguf_types)))
    return made


def _is_later_stage(target: pathlib.Path) -> bool:
    """Whether a run went on from its mask, and its model is that one."""
    found = record_lib.identity(target)
    return bool(found and 'run_sha256' in found)


def _refuse_over_later_stages(target: pathlib.Path) -> None:
    """Raises:
    InputError: if the run went on from its mask, and its model is that one.
    """
    if _is_later_stage(target):
        raise errors.InputError(
            f"{target} is the run's refitted or recovered model, not its mask's own. "
            'To have that one as well, give --materialize --mask=FILE --base_model and '
            'another --output_dir; --overwrite replaces what is there.'
        )


def _export(
    cfg: config_lib.ExportConfig,
    target: pathlib.Path,
    record_file: pathlib.Path | None,
    *,
    again: bool,
) -> None:
    source = source_lib.open_source(cfg)
    mask = source.persona_mask
    if cfg.keep_indices and mask.granularity != pmask.CHANNELS:
        raise errors.InputError(
            '--keep_indices lists FFN channels, and this mask removes whole blocks; '
            'its .pmask file is the list of them.'
        )
    if cfg.keep_indices and mask.kept is not None:
        raise errors.InputError(
            '--keep_indices lists equally many channels of every layer, and the layers '
            'of this mask keep different numbers; its .pmask file is the list of them.'
        )
    dtype = cfg.export_dtype or hf_export.default_dtype(source.base.reader)
    identity = source.identity(dtype)
    prompt = mask.system_prompt
    if cfg.system_prompt is not None:
        prompt = cfg.system_prompt
        identity['system_prompt'] = prompt
    _refuse_over_inputs(target, source)
    if cfg.from_run and not cfg.overwrite:
        _refuse_over_later_stages(target)
    stands = not record_lib.may_write(target, identity, overwrite=cfg.overwrite)

    tokenizer = source.base.tokenizer()
    facts = dataclasses.replace(
        source_lib.facts(
            source,
            dtype,
            published.command('export', cfg),
            has_template=bool(tokenizer.chat_template),
        ),
        sent_prompt=cfg.system_prompt,
    )
    verified = _verified_before(record_file, identity) if stands else None

    def check(folder: pathlib.Path) -> None:
        nonlocal verified
        if cfg.verify:
            date = source.trained.date if source.trained else settings.DATE
            tokens = verify_lib.prompts(
                tokenizer,
                mask.system_prompt,
                date=date,
                vocab_size=source.base.config.vocab_size,
            )
            verified = _verify(cfg, source, folder, dtype, tokens)

    if stands and (again or not verified):
        check(target)
    elif stands:
        progress.say(f'{target} is there already, and verified.')
    else:
        progress.say(f'Writing {target} ...')
        # What is missing is looked for before anything is sliced.
        loading.check_tensors(source.base.reader, source.base.config)
        hf_export.export_model(
            source.pruned,
            target,
            dtype=dtype,
            tokenizer=tokenizer,
            model_card=model_card.render(facts),
            system_prompt=prompt,
            identity=identity,
            check=check,
        )
    if cfg.keep_indices:
        keep_indices.save(cfg.keep_indices, mask.mask)
        if mask.gains is not None:
            progress.say(
                f'{cfg.keep_indices} has no place for the gains of this mask: a model '
                'made from it is another one.'
            )
    written = []
    if cfg.gguf_types:
        own = gguf_source.of_mask(cfg, source, prompt)
        written = _export_gguf(cfg, own, target.parent)
    if record_file is not None:
        sides = ('dense', 'pruned')
        atomic.write_json(
            record_file,
            {
                'settings': dataclasses.asdict(cfg),
                'versions': versions.versions(),
                'identity': identity,
                'granularity': mask.granularity,
                'keep': facts.keep,
                'num_layers': facts.num_layers,
                'd_ff': facts.d_ff,
                'sparsity': facts.removed,
                'parameters': dict(zip(sides, facts.parameters, strict=True)),
                'bytes': dict(zip(sides, facts.weight_bytes, strict=True)),
                'verify': verified,
                'gguf': written,
            },
        )
    print(_table(facts, target, verified))


def _verified_before(
    record_file: pathlib.Path | None, identity: Mapping[str, str]
) -> dict[str, Any] | None:
    """What the record of the same export says of its verification."""
    # One that is damaged is verified again.
    record = (record_file and json_lines.stored_object(record_file)) or {}
    found = record.get('verify')
    return found if record.get('identity') == identity else None


def _refuse_over_inputs(target: pathlib.Path, source: source_lib.ExportSource) -> None:
    """A mistyped folder must not cost the files that are read.

    Raises:
        InputError: naming the file that lies in the target.
    """
    for file in source.files if os.path.isdir(target) else ():
        if file.resolve().is_relative_to(target.resolve()):
            raise errors.InputError(
                f'{file} lies in {target}, where the export is to go; give another '
                '--output_dir.'
            )


def _verify(
    cfg: config_lib.ExportConfig,
    source: source_lib.ExportSource,
    folder: pathlib.Path,
    dtype: str,
    tokens: np.ndarray,
) -> dict[str, Any]:
    """What `results/export.json` says of it; differences beyond tolerance raise."""
    progress.say(verify_lib.announced(tokens))
    masks = source.persona_mask.decoder_masks()
    result = verify_lib.verify(source.base, masks, folder, dtype=dtype, tokens=tokens)
    result.require(cfg.verify_tolerance)
    return result.recorded(cfg.verify_tolerance, tokens)


def _table(
    facts: model_card.Facts, target: pathlib.Path, verified: Mapping[str, Any] | None
) -> str:
    def line(name: str, *values: str) -> str:
        return f'{name:<22}' + ''.join(f'{value:>16}' for value in values)

    lines = [
        line('', 'dense', 'pruned'),
        line('parameters', *(f'{count:,}' for count in facts.parameters)),
        line(f'bytes ({facts.dtype})', *(f'{size:,}' for size in facts.weight_bytes)),
        line('channels a layer', f'{facts.d_ff:,}', f'{facts.keep:,}')
        if facts.kept_blocks is None
        else line('blocks', str(facts.num_layers), str(facts.keep)),
        line('sparsity', '', f'{facts.removed:.2%}'),
    ]
    if facts.widths:
        lines.append(
            f'Layers keep {min(facts.widths):,} to {max(facts.widths):,} channels; the '
            'others of the width that all have are zeros.'
        )
    if verified is None:
        lines.append('Not verified; --verify compares it with the masked dense model.')
    else:
        lines.append('Largest difference of logits from the masked dense model:')
        for loader, value in verified['max_logit_difference'].items():
            if value is None:
                lines.append('PyTorch is not installed: not compared by transformers.')
            else:
                lines.append(line(f'  {loader}', '', f'{value:.2e}'))
        if (dense := verified.get('dense_logit_difference')) is not None:
            lines.append('Of the dense model, from that of transformers:')
            lines.append(line('  transformers', f'{dense:.2e}', ''))
    return '\n'.join([*lines, f'Exported to {target}'])

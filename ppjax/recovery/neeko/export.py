"""The model of the persona that a description is of, out of Neeko's blocks."""

import pathlib

import numpy as np

from ppjax import demo
from ppjax.base import locks, settings
from ppjax.base import progress as progress_lib
from ppjax.data import chat
from ppjax.exporting import config as config_lib
from ppjax.exporting import (
    hf_export,
    model_card,
    options,
    pruned_source,
    published,
    record,
)
from ppjax.exporting import verify as verify_lib
from ppjax.masking import apply
from ppjax.models import text_states
from ppjax.personas import prompts
from ppjax.personas import sources as persona_sources
from ppjax.recovery.neeko import blocks as blocks_lib
from ppjax.recovery.neeko import gate as gate_lib
from ppjax.recovery.neeko import results

# Of the personas that a description is laid beside, those that are told.
_SHOWN = 5


def export(cfg: config_lib.ExportConfig) -> pathlib.Path:
    """Exports what `cfg.neeko` has for `cfg.persona`, and says whose blocks it took.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk.
    """
    assert cfg.neeko and cfg.persona
    output = pathlib.Path(cfg.output_dir).expanduser()
    blocks = blocks_lib.load(cfg.neeko)
    prompt = _prompt(cfg, blocks)
    source = _source(cfg, blocks)
    pruned_source.refuse_inside(cfg.output_dir, source, cfg.mask)
    blocks.check_base(source.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(output, beside=True):
        _export(cfg, output, blocks, source, prompt)
    return output


def _prompt(cfg: config_lib.ExportConfig, blocks: blocks_lib.PersonaBlocks) -> str:
    """The persona prompt that `cfg.persona` is, names a block of, or is made to."""
    assert cfg.persona
    of_digest = dict(zip(blocks.digests, blocks.prompts, strict=True))
    if cfg.persona in of_digest or cfg.persona in blocks.prompts:
        return of_digest.get(cfg.persona, cfg.persona)
    if cfg.persona.startswith(demo.SCHEME):
        return prompts.persona_prompt(
            demo.persona(cfg.persona.removeprefix(demo.SCHEME))
        )
    return persona_sources.read_persona(
        cfg.persona, notes=progress_lib.say
    ).system_prompt


def _source(
    cfg: config_lib.ExportConfig, blocks: blocks_lib.PersonaBlocks
) -> pruned_source.PrunedSource:
    if cfg.model or cfg.base_model:
        return pruned_source.open_source(
            model=cfg.model,
            base_model_name=cfg.base_model or '',
            mask=cfg.mask,
            mask_sparsity=cfg.mask_sparsity,
        )
    base = apply.open_own_base(blocks.base_model, str(cfg.neeko))
    return pruned_source.PrunedSource(base, base, None, '')


def _export(
    cfg: config_lib.ExportConfig,
    output: pathlib.Path,
    blocks: blocks_lib.PersonaBlocks,
    source: pruned_source.PrunedSource,
    prompt: str,
) -> None:
    dtype = cfg.export_dtype or source.stored_dtype
    sent = prompt if cfg.system_prompt is None else cfg.system_prompt
    identity = source.hashes | {
        'neeko_sha256': results.sha256_of(pathlib.Path(str(cfg.neeko))),
        'persona': prompt,
        'gate': cfg.gate
        if cfg.gate == options.NEAREST
        else f'{cfg.gate} at {cfg.gate_temperature:g}',
        'system_prompt': sent,
        'dtype': dtype,
    }
    if not record.may_write(output, identity, overwrite=cfg.overwrite):
        progress_lib.say(f'{output} is there already; nothing is left to do.')
        return
    choice = _chosen(cfg, blocks, source, prompt)
    model = blocks.added(source.model, choice.shares)
    tokenizer = source.files.tokenizer()
    before = pruned_source.card_before(
        source,
        dtype,
        published.command('export', cfg),
        has_template=bool(tokenizer.chat_template),
    )

    def check(folder: pathlib.Path) -> None:
        if cfg.verify:
            verify_lib.checked(
                model,
                folder,
                dtype=dtype,
                tokenizer=tokenizer,
                system_prompt=sent,
                date=settings.DATE,
                tolerance=cfg.verify_tolerance,
                what="the chosen blocks' model",
            )

    progress_lib.say(f'Writing {output} ...')
    hf_export.export_model(
        model,
        output,
        dtype=dtype,
        tokenizer=tokenizer,
        model_card=model_card.with_recovery(before, _facts(cfg, blocks, choice)),
        system_prompt=sent,
        identity=identity,
        check=check,
    )


def _chosen(
    cfg: config_lib.ExportConfig,
    blocks: blocks_lib.PersonaBlocks,
    source: pruned_source.PrunedSource,
    prompt: str,
) -> gate_lib.Choice:
    """What the gate chooses, which is said as well."""
    [vector] = text_states.mean_states(
        source.model, [gate_lib.text_of(prompt)], dtype=_embedding_dtype(source)
    )
    choice = gate_lib.choose(
        blocks.gate, vector, gate=cfg.gate, temperature=cfg.gate_temperature
    )
    order = np.argsort(-choice.cosines, kind='stable')
    shown = ', '.join(
        f'{blocks.digests[i]} {choice.cosines[i]:.4f}'
        + (f' (share {choice.shares[i]:.3f})' if choice.shares[i] else '')
        for i in order[:_SHOWN]
    )
    rest = f' and {len(order) - _SHOWN} more' if len(order) > _SHOWN else ''
    known = chat.persona_digest(prompt) in blocks.digests
    progress_lib.say(
        f'The persona {"has a block" if known else "has no block of its own"}; cosines '
        f'with those that have: {shown}{rest}.'
    )
    return choice


def _embedding_dtype(source: pruned_source.PrunedSource) -> str:
    """Float32 unless the model would not fit that was stored in half of it."""
    return 'bfloat16' if source.stored_dtype == 'bfloat16' else 'float32'


def _facts(
    cfg: config_lib.ExportConfig,
    blocks: blocks_lib.PersonaBlocks,
    choice: gate_lib.Choice,
) -> model_card.Recovery:
    taken = np.flatnonzero(choice.shares)
    own = 'the persona whose' if len(taken) == 1 else 'several personas, whose'
    mixed = '' if len(taken) == 1 else ' mixed by a softmax of these,'
    return model_card.Recovery(
        trained=(
            f'Adapters of rank {blocks.rank} on {", ".join(blocks.targets)}, of {own} '
            f'text is nearest to that of the persona here,{mixed} since merged into '
            'the weights, were'
        ),
        calibration=pathlib.Path(str(cfg.neeko)).name,
        calibration_rows=sum(blocks.conversations[i] for i in taken),
        likelihood={},
        settings=blocks.settings,
        sent_prompt=cfg.system_prompt,
    )

"""Pruning by a rival from start to end: the story that `python -m ppjax.prune` tells."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from ppjax import demo
from ppjax.base import flags, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.baselines import budget, methods, results
from ppjax.baselines import config as config_lib
from ppjax.baselines import texts as texts_lib
from ppjax.data import calibration, chat
from ppjax.exporting import pruned_source
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references
from ppjax.masking import pmask
from ppjax.models import base_model, costs, loading
from ppjax.models import masks as masks_lib
from ppjax.parallel import sharding

STAGE = 'prune'
MAKES = (results.STRUCTURE, results.FILE)


def prune(cfg: config_lib.PruneConfig) -> pathlib.Path:
    """Prunes a model in a run directory, and exports it.

    Interrupted, the same command begins again, and ends with the same model; one that
    has ended is not made again.

    Returns:
        The exported model's directory.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk.
    """
    mesh = sharding.default_mesh(cfg.mesh)
    base = base_model.open_base_model(cfg.base_model)
    source = pruned_source.PrunedSource(base, base, None, '')
    pruned_source.refuse_inside(cfg.output_dir, source, None)
    target = matched(cfg, base)
    texts = texts_lib.read(cfg, base)
    heldout_rows = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    hashes = {
        'base model': base.fingerprint(),
        'texts': texts.digest,
        'heldout': calibration.content_hash(heldout_rows),
    }
    if target is not None:
        hashes['match'] = str(target.parameters.blocks)
    processes.agree({'settings': flags.to_flagfile(cfg)} | hashes)
    directory = run_directory.RunDirectory(cfg.output_dir)
    opened = directory.opened(
        cfg,
        hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=MAKES,
    )
    with opened, directory.stage(STAGE):
        exported = results.Exported(
            cfg, base, hashes, texts.system_prompt, directory.path
        )
        if processes.first_decides(exported.is_finished):
            progress_lib.say(
                f'{exported.model_dir} is there already; nothing is left to do.'
            )
        else:
            task = methods.Task(
                cfg, base, texts, target.parameters if target else None, mesh
            )
            outcome = methods.prune(task)
            _say(cfg, base, outcome, target)
            likelihood = _likelihood(cfg, base, outcome.model, heldout_rows, mesh)
            drawn = len(texts.draw(cfg.usual.sequences, cfg.seed))
            exported.write(outcome, target, likelihood, drawn)
        directory.done(step=1, total_steps=1)
    return exported.model_dir


def matched(
    cfg: config_lib.PruneConfig, base: base_model.BaseModel
) -> budget.Amount | None:
    """What `cfg.match` asks to be no smaller than; None if it asks for nothing.

    Raises:
        InputError: if it is no sparsity, or no mask of this base model.
    """
    if cfg.match is None:
        return None
    if (file := cfg.match_file) is None:
        [(_, keep)] = cfg.keeps(base.config.d_ff)
        return budget.persona_mask(base.config, keep)
    found = pmask.load_for(file, base)
    if found.granularity == pmask.BLOCKS:
        return budget.depth(base.config, base.config.num_layers - found.keep)
    sizes = [
        costs.BlockSize(int(row.sum()), base.config.num_kv_heads)
        for row in found.chosen
    ]
    return budget.of_sizes(base.config, found.keep, file.name, sizes)


def _say(
    cfg: config_lib.PruneConfig,
    base: base_model.BaseModel,
    outcome: methods.Outcome,
    target: budget.Amount | None,
) -> None:
    whole = budget.persona_mask(base.config, base.config.d_ff).parameters
    own = outcome.amount.parameters
    progress_lib.say(
        f'{cfg.method}: {outcome.amount.text}; {own.blocks:,} of {whole.blocks:,} '
        f'parameters of blocks are left ({own.blocks / whole.blocks:.1%}), '
        f'{own.unique:,} in all.'
    )
    if target is not None:
        progress_lib.say(
            f'Matched with {target.parameters.blocks:,} '
            f'({own.blocks / target.parameters.blocks - 1:+.2%}).'
        )


def _likelihood(
    cfg: config_lib.PruneConfig,
    base: base_model.BaseModel,
    pruned: base_model.BaseModel,
    rows: list[calibration.Row],
    mesh: jax.sharding.Mesh,
) -> Mapping[str, Any]:
    """Held-out figures of both models; empty without rows."""
    if not rows:
        return {}
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
    examples, _ = chat.render_rows(
        renderer, rows, cfg.max_length, positions=base.config.max_position
    )
    [heldout] = heldout_lib.HeldOut.of_personas([examples], cfg.batch_size, mesh)
    found = {}
    for name, model in (('dense', base), ('pruned', pruned)):
        decoder = loading.load_decoder(
            model.reader, model.config, dtype=jnp.dtype(cfg.dtype), mesh=mesh
        )
        found[name] = heldout.measure(decoder, masks_lib.DENSE)
        del decoder
        progress_lib.say(f'Held-out, {name}: {found[name].mean:.4f} nats/token')
    return references.likelihood(cfg.heldout, examples, found)

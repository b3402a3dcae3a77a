"""Reconstruction from start to end: the story that `python -m ppjax.compensate` tells."""

from collections.abc import Mapping
import contextlib
import itertools
import pathlib

import jax
import jax.numpy as jnp

from ppjax.base import errors, flags, json_lines, processes, run_directory
from ppjax.base import progress as progress_lib
from ppjax.compensation import config as config_lib
from ppjax.compensation import layers as layers_lib
from ppjax.compensation import one_shot, own_answers, refitted, results
from ppjax.compensation import texts as texts_lib
from ppjax.data import calibration
from ppjax.exporting import pruned_source
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import metrics as metrics_lib
from ppjax.learning import references as references_lib
from ppjax.masking import pmask
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib
from ppjax.parallel import preemption, sharding

STAGE = 'compensate'
_ROWS = 'refit'
# A stage's: of a run of its own the log as well.
MAKES = (f'{_ROWS}/layer-*.safetensors', own_answers.LOG, results.FILE)


class _Told(Exception):
    """To stop now, and to go on later."""


def compensate(
    cfg: config_lib.CompensateConfig,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    stage: str | None = None,
    measured: references_lib.Measured | None = None,
) -> pathlib.Path | None:
    """Refits a pruned model in a run directory, and exports it.

    Args:
        cfg: the settings, resolved.
        train_rows: the calibration rows that `cfg.calibration` names.
        heldout_rows: those that `cfg.heldout` names, or none.
        stage: its name, where it is one of a run of several.
        measured: what an earlier stage has measured of `heldout_rows`.

    Returns:
        The exported model's directory, or None if `cfg.stop_after` or a SIGTERM came
        first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk, or
            activations that are not finite.
    """
    mesh = sharding.default_mesh(cfg.mesh)
    source = pruned_source.open_source(
        base_model_name=cfg.base_model,
        mask=cfg.mask,
        mask_sparsity=cfg.mask_sparsity,
    )
    if stage is None:
        pruned_source.refuse_inside(cfg.output_dir, source, cfg.mask)
    _refuse_unfit(cfg, source)
    asked = own_answers.questions(cfg, [*train_rows, *heldout_rows])

    def prepared(more: list[calibration.Row]) -> data_lib.Data:
        return data_lib.prepare_data(
            source.files,
            [*train_rows, *more],
            heldout_rows,
            max_length=cfg.max_length,
            date=cfg.date,
        )

    data = prepared([])
    prompt = source.system_prompt or data.system_prompt
    if asked and not prompt:
        raise errors.InputError(
            '--own_answers are given under one persona prompt, and the calibration '
            'rows have several, or none.'
        )
    hashes = data.hashes | source.hashes
    if asked:
        hashes |= {'questions': json_lines.digest([one.query for one in asked])}
    processes.agree({'settings': flags.to_flagfile(cfg)} | hashes)
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    files = refitted.LayerFiles(directory.path / _ROWS)
    opened = directory.opened(
        cfg,
        hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=MAKES if stage else (*MAKES, one_shot.FILE, metrics_lib.FILES[0]),
    )
    with opened, directory.stage(STAGE):
        if source.persona_mask is None:
            source = one_shot.masked(cfg, source.files, data, directory.path, mesh)
        exported = results.Exported(cfg, source, hashes, directory.path)
        pruned = refitted.with_biases(source.model) if cfg.bias else source.model
        total = pruned.config.num_layers
        if processes.first_decides(exported.is_finished):
            progress_lib.say(
                f'{exported.model_dir} is there already; nothing is left to do.'
            )
        else:
            count = len(data.train)
            if asked:
                data = prepared(
                    own_answers.answered(
                        cfg, source.files, asked, prompt, directory.path
                    )
                )
            texts = texts_lib.pack(
                data,
                batch_size=cfg.batch_size,
                share=cfg.damping_share,
                seed=cfg.seed,
                mesh=mesh,
            )
            facts = _fit(cfg, source.files, pruned, texts, files, directory, mesh)
            if len(facts) < total:
                directory.paused(len(facts), total)
                return None
            whole = refitted.refitted_model(pruned, files, biased=cfg.bias)
            exported.write(
                whole,
                facts,
                data,
                _likelihoods(cfg, source, whole, data, mesh, measured),
                own=len(data.train) - count,
            )
        if processes.is_first():
            run_directory.discard(directory.path, [MAKES[0]])
        directory.done(step=total, total_steps=total)
    return exported.model_dir


def forget(run: pathlib.Path) -> None:
    """Removes what reconstruction left in a run that goes on without it.

    Raises:
        DiskError: if it cannot.
    """
    if processes.is_first():
        records = [f'stages/{STAGE}.{kind}' for kind in ('flags', 'inputs.json')]
        run_directory.discard(run, [*MAKES, *records])


def _refuse_unfit(
    cfg: config_lib.CompensateConfig, source: pruned_source.PrunedSource
) -> None:
    """Refuses what there is nothing to refit in, before a folder is made.

    Raises:
        InputError: with the reason.
    """
    if source.persona_mask is None:
        one_shot.keep_size(cfg, source.files)
    elif source.persona_mask.granularity != pmask.CHANNELS:
        raise errors.InputError(
            f'{cfg.mask} removes whole blocks, and no layer that is left lacks '
            'channels: there is nothing to refit.'
        )
    elif source.persona_mask.kept is not None:
        raise errors.InputError(
            f'{cfg.mask} keeps a different number of channels in every layer, and the '
            'zeros that fill the narrower ones up would be refitted too; give a mask '
            'learned with --budget=uniform.'
        )
    if cfg.bias:
        refitted.with_biases(source.model)


def _fit(
    cfg: config_lib.CompensateConfig,
    dense: base_model.BaseModel,
    pruned: base_model.BaseModel,
    texts: texts_lib.Texts,
    files: refitted.LayerFiles,
    directory: run_directory.RunDirectory,
    mesh: jax.sharding.Mesh,
) -> list[dict[str, float]]:
    """Fits the layers that are left; how each was, of those that are done in the end."""
    total = pruned.config.num_layers

    def count() -> int:
        done = itertools.takewhile(lambda n: files.facts(n) is not None, range(total))
        return sum(1 for _ in done)

    done = processes.first_decides(count)
    facts: list[dict[str, float]] = []
    with preemption.noticed() as notice, contextlib.ExitStack() as closed:
        asked = itertools.count(1)

        def between() -> None:
            if notice.given(next(asked)):
                raise _Told

        layers = layers_lib.Layers(cfg, dense, pruned, texts, files, mesh, between)
        if done < total:
            _say_plan(texts, layers, mesh)
        if done:
            progress_lib.say(
                f'Resuming {directory.path}: {done} of {total} layers are fitted.'
            )
        log = metrics_lib.MetricsLog(
            directory.path, resume_step=done, stages=(STAGE,), with_events=False
        )
        closed.callback(log.close)
        shown = progress_lib.Progress('Reconstruction', total)
        closed.callback(shown.close)
        try:
            if done < total:
                layers.start()
            while len(facts) < total:
                number = len(facts)
                # Those of a run that is whole need not be run for the next.
                known = files.facts(number) if done == total else None
                found = layers.run(number) if known is None else known
                facts.append(found)
                if not log.has(STAGE, number + 1):
                    log.write(STAGE, number + 1, **found)
                shown.update(number + 1, _outcome(found))
                directory.status(step=number + 1, total_steps=total)
                if number + 1 == cfg.stop_after:
                    break
        except _Told:
            pass
    return facts


def _outcome(facts: Mapping[str, float]) -> str:
    if not facts['refitted']:
        return 'left as it was: no damping helps texts held back'
    rest = facts['heldback_error'] / max(facts['heldback_error_before'], 1e-30)
    return f'damping {facts["damping"]:g}, error x {rest:.3f}'


def _say_plan(
    texts: texts_lib.Texts, layers: layers_lib.Layers, mesh: jax.sharding.Mesh
) -> None:
    count, held = texts.examples
    streams, sums = (size / 1e9 for size in layers.memory())
    progress_lib.say(
        f'Refitting {layers.total} layers on {count} examples ({held} of them held back '
        f'to choose the damping): {len(texts.batches)} batches of '
        f'{texts.shape.rows * texts.shape.tokens_per_row} tokens. Memory of this '
        f'machine: {streams:.2f} GB for both streams, {sums:.2f} GB for a '
        "layer's sums."
    )
    if mesh.size > 1:
        progress_lib.say(f'Devices: {sharding.text_of(mesh)}.')


def _likelihoods(
    cfg: config_lib.CompensateConfig,
    source: pruned_source.PrunedSource,
    whole: base_model.BaseModel,
    data: data_lib.Data,
    mesh: jax.sharding.Mesh,
    measured: references_lib.Measured | None,
) -> dict[str, heldout_lib.Likelihood]:
    """Held-out likelihood of the models, one of which is in memory at a time."""
    if not data.heldout:
        return {}
    [heldout] = heldout_lib.HeldOut.of_personas([data.heldout], cfg.batch_size, mesh)
    models = {'dense': source.files, 'start': source.model, 'refitted': whole}
    known = measured.of(data.heldout) if measured else {}
    found = {}
    for name, model in models.items():
        if name in known:
            found[name] = known[name]
            continue
        decoder = loading.load_decoder(
            model.reader, model.config, dtype=jnp.dtype(cfg.dtype), mesh=mesh
        )
        found[name] = heldout.measure(decoder, masks_lib.DENSE)
        del decoder
        progress_lib.say(f'Held-out, {name}: {found[name].mean:.4f} nats/token')
    return found

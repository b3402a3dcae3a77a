"""What recovery leaves: a Hugging Face directory, what was added, and its figures."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

import jax

from ppjax.base import atomic, flags, processes, versions
from ppjax.base import progress as progress_lib
from ppjax.exporting import hf_export, model_card, pruned_source, published, record
from ppjax.exporting import verify as verify_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references
from ppjax.masking import gain_files
from ppjax.models import base_model, costs
from ppjax.models import structure as structure_lib
from ppjax.recovery import config as config_lib
from ppjax.recovery import gains, lora, methods, peft_files, records
from ppjax.recovery import run as run_lib

GAINS_FILE = 'gains.safetensors'


def file_of(run: run_lib.RecoveryRun) -> pathlib.Path:
    """Where its figures go, after all else."""
    return run.directory.path / records.FILE


def identity_of(run: run_lib.RecoveryRun) -> dict[str, str]:
    """Of what a run makes: the run that it is from."""
    unset = [
        field.name
        for field in dataclasses.fields(run.cfg)
        if field.name in config_lib.LATER
        and getattr(run.cfg, field.name) == field.default
    ]
    settings = flags.to_flagfile(run.cfg, omit=(*config_lib.RESUMABLE, *unset))
    return record.of_run(settings, run.data.hashes | run.source.hashes)


def is_finished(run: run_lib.RecoveryRun) -> bool:
    """Whether `write` came to its end.

    Raises:
        InputError: if hf/ is damaged, or something else.
    """
    return record.is_finished(file_of(run), run.model_dir, identity_of(run))


def write(
    run: run_lib.RecoveryRun,
    trained: methods.Trained,
    likelihood: Mapping[str, heldout_lib.Likelihood],
) -> None:
    """Writes hf/, with LoRA adapter/, with gains their file, and last the figures.

    Raises:
        InputError: if the disk is full or cannot be written, a weight is not finite
            in the precision to export, or the export is not the model.
    """
    cfg, source = run.cfg, run.source
    recovered = dataclasses.replace(
        source.model, reader=run.method.merged(trained, source.model.reader)
    )
    figures = figures_of(run, trained, likelihood) | _sizes(run, recovered)
    dtype = cfg.export_dtype or source.stored_dtype
    tokenizer = source.files.tokenizer()
    before = pruned_source.card_before(
        source,
        dtype,
        published.command('recover', dataclasses.replace(cfg, overwrite=False)),
        has_template=bool(tokenizer.chat_template),
    )
    system_prompt = cfg.system_prompt
    if system_prompt is None:
        # Whose rows it learns from last, it is: its start may be of many personas.
        system_prompt = run.data.system_prompt or source.system_prompt
    # One of this very run may stand there, whose figures were not written yet.
    processes.first_decides(
        lambda: record.may_write(run.model_dir, identity_of(run), overwrite=True)
    )
    progress_lib.say(f'Writing {run.model_dir} ...')

    def check(folder: pathlib.Path) -> None:
        if not cfg.verify or not processes.is_first():
            return
        figures['verify'] = verify_lib.checked(
            recovered,
            folder,
            dtype=dtype,
            tokenizer=tokenizer,
            system_prompt=system_prompt,
            date=cfg.date,
            tolerance=cfg.verify_tolerance,
            what='the recovered model',
        )

    hf_export.export_model(
        recovered,
        run.model_dir,
        dtype=dtype,
        tokenizer=tokenizer,
        model_card=model_card.with_recovery(before, _card_facts(run, figures)),
        system_prompt=system_prompt,
        identity=identity_of(run),
        check=check,
    )
    if cfg.gains:
        gain_files.save(
            run.directory.path / GAINS_FILE,
            gain_files.PersonaGains(
                gains.fetched(trained['gains']),
                source.model.name,
                source.model.fingerprint(),
                system_prompt,
            ),
        )
    if cfg.lora_rank:
        peft_files.save(
            run.directory.path / 'adapter',
            run.method.cast(trained)['adapters'],
            alpha=cfg.lora_alpha,
            targets=lora.parse_targets(cfg.lora_targets),
            base_name=model_card.hub_id(source.model.name),
        )
    atomic.write_json(file_of(run), figures | {'export_dtype': dtype})


def figures_of(
    run: run_lib.RecoveryRun,
    trained: methods.Trained,
    likelihood: Mapping[str, heldout_lib.Likelihood],
) -> dict[str, Any]:
    """The content of results/recovery.json: means, and every example's figures."""
    figures: dict[str, Any] = {
        'method': run.cfg.method,
        'identity': identity_of(run),
        'trained_parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(trained)),
        'steps': run.total,
        'learning_rate': run.peak_rate,
        'mesh': dict(run.mesh.shape),
    }
    if likelihood:
        figures |= references.likelihood(run.cfg.heldout, run.data.heldout, likelihood)
    return figures | {
        'settings': dataclasses.asdict(run.cfg),
        'versions': versions.versions(),
    }


def _sizes(run: run_lib.RecoveryRun, recovered: base_model.BaseModel) -> dict[str, Any]:
    """What is left of the model in each block, where these are of different sizes.

    Counted in the recovered weights, whose zeros fill up the narrower ones.
    """
    if run.structure.is_uniform:
        return {}
    sizes = structure_lib.of_weights(recovered).sizes
    return {
        'is_uniform': False,
        'blocks': [
            {'block': layer} | size._asdict() for layer, size in enumerate(sizes)
        ],
        'parameters': costs.parameters(recovered.config, sizes)._asdict(),
    }


def _card_facts(
    run: run_lib.RecoveryRun, figures: Mapping[str, Any]
) -> model_card.Recovery:
    cfg = run.cfg
    targets = cfg.gain_targets if cfg.gains else cfg.lora_targets
    listed = ', '.join(name.strip() for name in targets.split(','))
    trained = {
        'full': 'All weights were',
        'lora': (
            f'Adapters of rank {cfg.lora_rank} on {listed}, since merged into the '
            'weights, were'
        ),
        'gains': (
            f'Gains of {listed}, since folded into the weights, and nothing else, were'
        ),
    }[cfg.method]
    return model_card.Recovery(
        trained=trained,
        calibration=str(cfg.calibration),
        calibration_rows=len(run.data.train),
        likelihood=figures,
        settings=published.settings_text(cfg),
        sent_prompt=cfg.system_prompt,
        parameters=figures.get('parameters', {}).get('unique'),
    )

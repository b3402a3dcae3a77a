"""`python -m ppjax.plan`: what mask learning takes, before anything is rented.

python -m ppjax.plan --base_model=Qwen/Qwen2.5-32B-Instruct --topology=v5e:8x8 \\
    --mesh=fsdp:8,tensor:8 --batch_size=64
python -m ppjax.plan --base_model=config.json --topology=local

Reads a config.json and no weights, and compiles the real step for the chips named; it
runs on a laptop. Exit code 1 if it does not fit.
"""

from collections.abc import Iterator
import dataclasses
import json
from typing import Any

import jax

from ppjax.base import atomic, errors, flags, progress, ranges, settings
from ppjax.learning import loss
from ppjax.models import base_model, decoder
from ppjax.models import config as config_lib
from ppjax.planning import chips, compiled, report, step_shape, topology

_MOST_PERSONAS = 100_000


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Flags of `python -m ppjax.plan`."""

    base_model: str = flags.setting(
        None,
        'A directory with a config.json, the file itself, or a Hugging Face Hub id, of '
        'which only config.json is fetched.',
        path=True,
    )
    topology: str = flags.setting(
        topology.LOCAL,
        'A TPU slice, as v5e:8x8, v5p:4x4x2 or v6e:4x4, or local for the devices here.',
    )
    mesh: str | None = flags.setting(
        None, 'As for python -m ppjax.train; by default all devices along fsdp.'
    )
    batch_size: int = flags.setting(64, 'Examples a step.', least=1)
    micro_batches: int = flags.setting(
        1, 'Parts that a step is accumulated from.', least=1
    )
    prompt_length: int = flags.setting(
        256, "Tokens of the persona's prompt, which all examples share.", least=1
    )
    answer_length: int = flags.setting(256, 'Tokens of every answer.', least=1)
    dtype: str = flags.setting(
        'bfloat16', 'Of weights and activations.', choices=settings.DTYPES
    )
    remat: str = flags.setting(
        'full', 'What the backward pass recomputes.', choices=decoder.REMAT
    )
    int8_base: bool = flags.setting(False, "Keep the blocks' matrices as int8.")
    sparsity: float = flags.setting(
        0.5, 'Share of FFN channels removed.', within='[0, 1)'
    )
    objective: str = flags.setting(
        'ce',
        'As for python -m ppjax.train; kl runs the dense model too.',
        choices=loss.OBJECTIVES,
    )
    personas: str | None = flags.setting(
        None,
        'Of a run of several personas: their names, as for python -m ppjax.train, or '
        'how many there are.',
    )
    personas_per_step: int = flags.setting(
        4, 'Of --personas, how many take an optimizer step side by side.', least=1
    )
    steps: int = flags.setting(1000, 'Of the whole run, for its hours.', least=1)
    utilisation: float = flags.setting(
        0.4,
        "Share of the chips' stated peak that useful FLOPs are taken to reach.",
        within='(0, 1]',
    )
    suggest: bool = flags.setting(
        True, 'Look for the smallest change that fits, where the step does not.'
    )
    result: str | None = flags.setting(
        None, 'JSON file to write the figures to.', writes=True
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'base_model')
        ranges.check(self)
        if not 1 <= self.num_personas <= _MOST_PERSONAS:
            raise errors.InputError(
                f'--personas must be 1 to {_MOST_PERSONAS}, got {self.personas}.'
            )

    @property
    def num_personas(self) -> int:
        """P, 1 where none are named."""
        given = (self.personas or '1').strip()
        return int(given) if given.isdecimal() else len(given.split(','))


def _wanted(cfg: PlanConfig, layers: int) -> compiled.Wanted:
    return compiled.Wanted(
        mesh=cfg.mesh,
        shape=step_shape.Shape(
            persona=cfg.prompt_length,
            answer=cfg.answer_length,
            batch=cfg.batch_size,
            layers=layers,
        ),
        micro_batches=cfg.micro_batches,
        dtype=cfg.dtype,
        remat=cfg.remat,
        sparsity=cfg.sparsity,
        int8_base=cfg.int8_base,
        objective=cfg.objective,
        personas=cfg.num_personas,
        slots=min(cfg.personas_per_step, cfg.num_personas),
    )


def _plan(
    cfg: PlanConfig, model: config_lib.ModelConfig
) -> tuple[compiled.Fit, dict[str, Any]]:
    devices = topology.devices(cfg.topology)
    if cfg.topology == topology.LOCAL:
        chip = chips.of_device(devices[0])
    else:
        # Their compiler refuses by itself what does not fit.
        chip = chips.of_topology(cfg.topology)
    wanted = _wanted(cfg, model.num_layers)
    progress.say(f'Compiling for {len(devices)} x {chip.name}; up to some minutes.')
    fit = compiled.compile_step(model, devices, wanted, available=chip.memory)
    return fit, report.figures(
        model,
        chip,
        len(devices),
        wanted,
        fit,
        utilisation=cfg.utilisation,
        steps=cfg.steps,
    )


def _changes(cfg: PlanConfig) -> Iterator[PlanConfig]:
    """Settings that take less of a chip's memory, the smallest change first."""
    if cfg.remat != 'full':
        cfg = dataclasses.replace(cfg, remat='full')
        yield cfg
    rows = max(1, cfg.batch_size // cfg.micro_batches)
    if cfg.num_personas > 1 and cfg.personas_per_step > 1:
        yield dataclasses.replace(cfg, personas_per_step=1)
    for more in (2, 4, 8):
        if rows >= more:
            yield dataclasses.replace(cfg, micro_batches=cfg.micro_batches * more)
    if not cfg.int8_base:
        yield dataclasses.replace(cfg, int8_base=True)
    if cfg.topology == topology.LOCAL:
        return
    for name in topology.larger(cfg.topology):
        # Sizes that fitted fewer chips: those that are more share out the weights.
        mesh = topology.spread_over_more(cfg.mesh)
        yield dataclasses.replace(cfg, topology=name, mesh=mesh)


def _text_of_change(cfg: PlanConfig, changed: PlanConfig) -> str:
    given = flags.to_flagfile(cfg).splitlines()
    lines = flags.to_flagfile(changed).splitlines()
    return ' '.join(line for line in lines if line not in given)


def _suggestion(cfg: PlanConfig, model: config_lib.ModelConfig) -> str | None:
    for changed in _changes(cfg):
        text = _text_of_change(cfg, changed)
        progress.say(f'Trying {text} ...')
        try:
            fit, _ = _plan(changed, model)
        except errors.InputError as error:
            progress.say(str(error))
            continue
        if fit.fits:
            return text
    return None


def main(cfg: PlanConfig) -> int:
    """Plans, prints, and says whether it fits."""
    if cfg.topology != topology.LOCAL:
        # Nothing runs; and what compiles for TPUs must not look for one.
        jax.config.update('jax_platforms', 'cpu')
    model = config_lib.from_hf_config(base_model.read_hf_config(cfg.base_model))
    fit, found = _plan(cfg, model)
    lines = [report.text(found)]
    if not fit.fits and cfg.suggest:
        found['suggestion'] = _suggestion(cfg, model)
        lines.append(
            f'Fits with {found["suggestion"]}.'
            if found['suggestion']
            else 'No change that was tried fits; learn on more or larger chips.'
        )
    print('\n'.join(lines))
    if cfg.result:
        found['settings'] = dataclasses.asdict(cfg)
        atomic.write_text(cfg.result, json.dumps(found, indent=2) + '\n')
        progress.say(f'Written to {cfg.result}.')
    return 0 if fit.fits else 1


if __name__ == '__main__':
    flags.run(PlanConfig, main)

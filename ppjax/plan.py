"""`python -m ppjax.plan`: what mask learning takes, before anything is rented.

python -m ppjax.plan --base_model=Qwen/Qwen2.5-32B-Instruct --topology=v5e:8x8 \\
    --mesh=fsdp:8,tensor:8 --batch_size=64
python -m ppjax.plan --base_model=config.json --topology=local

Reads a config.json and no weights, and compiles the real step for the chips
named (pip install '.[tpu-plan]'), or with --topology=local for the devices
here; it runs on a laptop. It says what a chip's memory holds at the peak, what
the chips send each other, how long a step takes at a utilisation that you
state, and which numbers of kept channels split over how many devices and fit
which quantisation. Where it does not fit, it says so, exits with 1, and looks
for the smallest change that does.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax

from ppjax.base import atomic, errors, flags, progress
from ppjax.models import base_model
from ppjax.models import config as config_lib
from ppjax.planning import chips, compiled, config, report, topology


def _plan(cfg: config.PlanConfig, model: config_lib.ModelConfig) -> dict[str, Any]:
    """All figures; see `report.figures`."""
    devices = topology.devices(cfg.topology)
    if cfg.topology == topology.LOCAL:
        chip = chips.of_device(devices[0])
    else:
        # Their compiler refuses by itself what does not fit.
        chip = chips.of_topology(cfg.topology)
    progress.say(f'Compiling for {len(devices)} x {chip.name}; up to some minutes.')
    fit = compiled.compile_step(cfg, model, devices, available=chip.memory)
    return report.figures(cfg, model, chip, len(devices), fit)


def _changes(cfg: config.PlanConfig) -> Iterator[config.PlanConfig]:
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


def _text_of_change(cfg: config.PlanConfig, changed: config.PlanConfig) -> str:
    given = flags.to_flagfile(cfg).splitlines()
    lines = flags.to_flagfile(changed).splitlines()
    return ' '.join(line for line in lines if line not in given)


def _suggestion(cfg: config.PlanConfig, model: config_lib.ModelConfig) -> str | None:
    for changed in _changes(cfg):
        text = _text_of_change(cfg, changed)
        progress.say(f'Trying {text} ...')
        try:
            fits = _plan(changed, model)['fits']
        except errors.InputError as error:
            progress.say(str(error))
            continue
        if fits:
            return text
    return None


def main(cfg: config.PlanConfig) -> int:
    """Plans, prints, and says whether it fits."""
    if cfg.topology != topology.LOCAL:
        # Nothing runs; and what compiles for TPUs must not look for one.
        jax.config.update('jax_platforms', 'cpu')
    model = config_lib.from_hf_config(base_model.read_hf_config(cfg.base_model))
    found = _plan(cfg, model)
    lines = [report.text(found)]
    if not found['fits'] and cfg.suggest:
        found['suggestion'] = _suggestion(cfg, model)
        lines.append(
            f'Fits with {found["suggestion"]}.'
            if found['suggestion']
            else 'No change that was tried fits; learn on more or larger chips.'
        )
    print('\n'.join(lines))
    if cfg.result:
        atomic.write_json(cfg.result, found | {'settings': dataclasses.asdict(cfg)})
        progress.say(f'Written to {cfg.result}.')
    return 0 if found['fits'] else 1


if __name__ == '__main__':
    flags.run(config.PlanConfig, main)

"""`python -m ppjax.train`: learn a persona mask, or many over one base model."""

from ppjax import demo
from ppjax.base import compile_cache, flags, processes, progress
from ppjax.evaluation.page import report
from ppjax.recipes import shared_start
from ppjax.training import config, loop


def _rows(cfg: config.TrainConfig) -> loop.TwoSplits:
    return (
        demo.read_rows(cfg.calibration, split='train'),
        demo.read_rows(cfg.heldout, split='test') if cfg.heldout else [],
    )


def main(cfg: config.TrainConfig) -> int:
    """Learns the masks that the settings ask for."""
    compile_cache.enable()
    if not cfg.personas:
        mask = loop.learn_mask(cfg, *_rows(cfg))
        if mask is not None:
            progress.say(f'Persona mask: {mask}')
            if processes.is_first():
                progress.say(f'Report: {report.write_report(cfg.output_dir)}')
        return 0
    own = {name: cfg.of_persona(name) for name in cfg.persona_names}
    learn = shared_start.learn_masks if cfg.shared_steps else loop.learn_masks
    masks = learn(cfg, {name: _rows(own[name]) for name in own})
    for name, mask in (masks or {}).items() if processes.is_first() else ():
        page = report.write_report(own[name].output_dir)
        progress.say(f'{name}: persona mask {mask}, report {page}')
    return 0


if __name__ == '__main__':
    flags.run(config.TrainConfig, main, joined=True, saves=True)

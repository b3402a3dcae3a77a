"""`python -m ppjax.train`: learn a persona mask."""

from ppjax import compile_cache, demo, flags, progress
from ppjax.evaluation.page import report
from ppjax.training import config, loop


def main(cfg: config.TrainConfig) -> int:
    """Learns the mask that the settings ask for."""
    compile_cache.enable()
    train_rows = demo.read_rows(cfg.calibration, split='train')
    heldout_rows = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    mask = loop.learn_mask(cfg, train_rows, heldout_rows)
    if mask is not None:
        progress.say(f'Persona mask: {mask}')
        progress.say(f'Report: {report.write_report(cfg.output_dir)}')
    return 0


if __name__ == '__main__':
    flags.run(config.TrainConfig, main)

"""`python -m ppjax.compensate`: refit what a mask leaves so that it follows the dense model.

python -m ppjax.compensate --run=runs/mine --output_dir=runs/mine-refitted
python -m ppjax.compensate --base_model=DIR --mask=mask.pmask \\
    --calibration=train.jsonl --heldout=test.jsonl --output_dir=runs/mine-refitted
"""

from ppjax import demo
from ppjax.base import compile_cache, flags, progress
from ppjax.compensation import config, loop


def main(cfg: config.CompensateConfig) -> int:
    """Refits the model that the settings name."""
    compile_cache.enable()
    cfg = cfg.resolved()
    assert cfg.calibration is not None
    train_rows = demo.read_rows(cfg.calibration, split='train')
    heldout_rows = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    model = loop.compensate(cfg, train_rows, heldout_rows)
    if model is not None:
        progress.say(f'Refitted model: {model}')
    return 0


if __name__ == '__main__':
    flags.run(config.CompensateConfig, main, joined=True, saves=True)

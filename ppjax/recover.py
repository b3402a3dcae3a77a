"""`python -m ppjax.recover`: finetune a pruned model on its calibration data.

python -m ppjax.recover --run=runs/mine --output_dir=runs/mine-recovered
python -m ppjax.recover --model=runs/mine/hf --calibration=train.jsonl \\
    --heldout=test.jsonl --output_dir=runs/mine-recovered --lora_rank=16
python -m ppjax.recover --model=runs/mine-refitted/hf --calibration=train.jsonl \\
    --heldout=test.jsonl --output_dir=runs/mine-gains --gains
"""

from ppjax import demo
from ppjax.base import compile_cache, flags, progress
from ppjax.recovery import config, loop


def main(cfg: config.RecoverConfig) -> int:
    """Recovers the model that the settings name."""
    compile_cache.enable()
    cfg = cfg.resolved()
    assert cfg.calibration is not None
    train_rows = demo.read_rows(cfg.calibration, split='train')
    heldout_rows = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    model = loop.recover(cfg, train_rows, heldout_rows)
    if model is not None:
        progress.say(f'Recovered model: {model}')
    return 0


if __name__ == '__main__':
    flags.run(config.RecoverConfig, main, joined=True, saves=True)

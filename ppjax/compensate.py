"""`python -m ppjax.compensate`: refit what a mask leaves to the dense model.

python -m ppjax.compensate --run=runs/mine --output_dir=runs/mine-refitted
python -m ppjax.compensate --base_model=DIR --mask=mask.pmask \\
    --calibration=train.jsonl --heldout=test.jsonl \\
    --output_dir=runs/mine-refitted

Refits, layer by layer and without gradients, the rows of down_proj that the
mask keeps, so that the pruned model follows the dense one, and exports it to
hf/ in --output_dir: a stock checkpoint like any other, which evaluate, chat and
recover take as --model. It runs both models over the calibration rows once; how
firmly rows are held where they are (--damping) is chosen for every layer on
rows held back. A layer that no damping helps stays as it was, and is counted in
the model card. --target says what a layer is fitted to, and --bias fits a bias
as well, which a Llama alone can hold. One layer's weights are in memory at a
time; interrupted, the same command goes on with the layer it was at.

--base_model=DIR --sparsity=0.5 --calibration=FILE, without a learned mask,
removes the channels with the smallest activations and refits what is left.
--own_answers=500 --instructions=FILE adds texts that nobody wrote: the dense
model's answers under the persona prompt.

A mask, then compensate, then recover on what that exported is what python -m
ppjax.run does; with --steps=N its --compensate=ridge does it in place of the
plain export of the learned mask.
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

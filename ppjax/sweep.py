"""`python -m ppjax.sweep`: grids of mask learning runs, compared at the end.

python -m ppjax.sweep --base_model=DIR --output_dir=runs/sweep --steps=200 \\
    --calibration='data/{persona}/train.jsonl' \\
    --heldout='data/{persona}/test.jsonl' \\
    --grid='persona=jack,walt,global;estimator=ste,gumbel;seed=0,1,2'

Learns a mask for every cell of a grid over personas and any setting of mask
learning (sparsity, estimator, objective, start, calibration rows, seed, ...;
see python -m ppjax.train --help) and compares them: sweep.html with plots,
sweep.md, sweep.csv and sweep.json. The persona `global` is one mask from all
other personas' data (the paper's Figure 3b); calibration_rows gives the curve
of its Figure 3a. A sweep can be interrupted, and extended by values.
"""

import pathlib

from ppjax.base import compile_cache, flags, progress
from ppjax.sweeping import config, runner


def main(cfg: config.SweepConfig) -> int:
    """Learns and compares what the grid asks for."""
    compile_cache.enable()
    tables = runner.sweep(cfg)
    if tables is not None:
        print(tables)
        progress.say(f'Page: {pathlib.Path(cfg.output_dir) / "sweep.html"}')
    return 0


if __name__ == '__main__':
    flags.run(config.SweepConfig, main)

"""`python -m ppjax.compare`: persona masks and rival pruners on the same data.

python -m ppjax.compare --base_model=DIR --output_dir=runs/table \\
    --grid='method=dense,mask,llm_pruner;persona=jack,walt;recovery=none,general' \\
    --calibration='data/{persona}/train.jsonl' --heldout='data/{persona}/test.jsonl' \\
    --instructions=alpaca.json --evaluate='--tasks=likelihood,piqa --piqa=piqa.jsonl'
"""

import pathlib

from ppjax.base import compile_cache, flags, progress
from ppjax.comparing import config, runner


def main(cfg: config.CompareConfig) -> int:
    """Makes, measures and compares what the grid asks for."""
    compile_cache.enable()
    tables = runner.compare(cfg)
    if tables is not None:
        print(tables)
        progress.say(f'Page: {pathlib.Path(cfg.output_dir) / "compare.html"}')
    return 0


if __name__ == '__main__':
    flags.run(config.CompareConfig, main)

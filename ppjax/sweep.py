"""`python -m ppjax.sweep`: grids of mask learning runs, compared at the end."""

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

"""`python -m ppjax.masks`: which channels different personas' masks share.

python -m ppjax.masks --masks=runs/sweep --output_dir=runs/masks
python -m ppjax.masks --masks='runs/cast/personas/*' --output_dir=runs/masks \\
    --embeddings=base
python -m ppjax.masks --operation=info --masks=jack.pmask
python -m ppjax.masks --operation=and --masks=jack.pmask,walt.pmask --output=both.pmask
"""

import pathlib

from ppjax.analysis import config, runner
from ppjax.base import compile_cache, flags, progress


def main(cfg: config.MasksConfig) -> int:
    """Compares or combines masks, and prints what came of it."""
    compile_cache.enable()
    print(runner.run(cfg))
    if cfg.output_dir:
        progress.say(f'Page: {pathlib.Path(cfg.output_dir) / "masks.html"}')
    elif cfg.output:
        progress.say(f'Mask: {cfg.output}')
    return 0


if __name__ == '__main__':
    flags.run(config.MasksConfig, main)

"""`python -m ppjax.run`: from nothing but a persona to a pruned model.

python -m ppjax.run --persona=card.png --base_model=DIR --instructions=FILE \\
    --output_dir=runs/mine

Keeps the channels with the largest activations, refits what they add, and learns adapters.
The paper's way, a learned mask, is --steps=N or --epochs=3.
"""

from ppjax.base import compile_cache, flags
from ppjax.recipes import config, from_persona


def main(cfg: config.RunConfig) -> int:
    """Goes from the persona to the report."""
    compile_cache.enable()
    from_persona.prune(cfg.resolved())
    return 0


if __name__ == '__main__':
    flags.run(config.RunConfig, main)

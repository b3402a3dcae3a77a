"""Default peak learning rates of recovery.

By what is trained and by the size of what is left of the model. Those of small models
were found on rows for choosing, of SmolLM2-135M and, from 300 million parameters on, of
Qwen2.5-Coder-0.5B (RESULTS.md, "Ways to a small model"); those of larger ones are the
paper's (A.1), and of gains nobody has others.
"""

import math

# Method -> (parameters below which it is so, rate), ascending. Of adapters larger than of
# weights: they start from nothing. A gain moves all of its channel by its share, and
# there are few.
_RATES: dict[str, tuple[tuple[float, float], ...]] = {
    'full': ((3e8, 1e-4), (1e9, 2e-5), (math.inf, 5e-5)),
    'lora': ((1e9, 2e-3), (math.inf, 1e-4)),
    'gains': ((math.inf, 1e-2),),
}
# Each block is LoRA.
_RATES['neeko'] = _RATES['lora']


def usual(method: str, parameters: int) -> float:
    """The peak rate where none is given.

    Args:
        method: full, lora, neeko or gains.
        parameters: of the model that is recovered.
    """
    return next(rate for size, rate in _RATES[method] if parameters < size)


def text() -> str:
    """All of them, for people."""

    def of(method: str) -> str:
        *smaller, (_, last) = _RATES[method]
        parts = [f'{rate:g} below {size:,.0f} parameters' for size, rate in smaller]
        return ', '.join([*parts, f'{last:g} from there on' if parts else f'{last:g}'])

    return (
        f'{of("full")}; with LoRA, of --neeko too, {of("lora")}; '
        f'with --gains {of("gains")}'
    )

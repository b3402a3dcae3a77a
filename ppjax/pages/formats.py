"""Numbers as pages and tables show them."""

import math
from typing import Any


def number(value: Any) -> float | None:
    """A JSON value as a finite number; None if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def quantity(value: float, unit: str = '') -> str:
    """Four digits and a decimal prefix: '134.5 M', '458.4 MB', '1.458 TFLOP'."""
    if not math.isfinite(value):
        return str(value)
    scaled, prefix = float(value), ''
    for prefix in ('', 'k', 'M', 'G' if unit else 'B', 'T', 'P', 'E'):
        if abs(scaled) < 999.95 or prefix == 'E':
            break
        scaled /= 1000
    if not prefix and scaled.is_integer():
        return f'{scaled:.0f} {unit}'.rstrip()
    before_point = math.floor(math.log10(abs(scaled))) + 1 if scaled else 1
    return f'{scaled:.{min(3, max(0, 4 - before_point))}f} {prefix}{unit}'.rstrip()

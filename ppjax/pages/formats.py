"""Numbers as pages and tables show them."""

from collections.abc import Callable
import math
from typing import Any

Show = Callable[[float], str]


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


def signed(value: float, digits: int = 4) -> str:
    text = f'{value:+.{digits}f}'.replace('-', '−')
    return text if float(text.replace('−', '-')) else text[1:]


def decimals(digits: int) -> Show:
    return lambda value: f'{value:.{digits}f}'


def percent(value: float) -> str:
    return f'{100 * value:.1f}\N{NO-BREAK SPACE}%'


def plus_minus(error: float) -> str:
    return f'±\N{NO-BREAK SPACE}{error:.4f}'


def points(value: float) -> str:
    return signed(value, 2)


def interval(value: Any) -> tuple[float, float] | None:
    """Two numbers, or the ends of a spread; None for whatever else a file held."""
    if isinstance(value, dict):
        value = [value.get('min'), value.get('max')]
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)


def printable(text: str) -> str:
    """One line without characters that a terminal obeys or a drawing cannot show."""
    return ''.join(c if c.isprintable() else ' ' for c in text)

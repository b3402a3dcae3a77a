"""A model's figures in the report: its name, its colour, its settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppjax.evaluation import candidates
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats

# Of the models in their order; more of them begin again, in other pairs.
_PAINTS = ('dense', 'learned', 'heldout', 'one_shot', 'random')
_STYLES = ('dashed', 'solid', 'dashdot', 'dotted')


def models(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The models' figures in the order of the result."""
    found = mapping(result.get('models'))
    return {name: own for name, own in found.items() if mapping(own)}


def order(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The models of all results, in the order of the one that has most of them."""
    found = sorted(map(models, results), key=len, reverse=True)
    return list(dict.fromkeys(name for own in found for name in own))


def label(name: str) -> str:
    """As `candidates.label`, short and of characters that can be drawn."""
    shown = candidates.label(name)
    shown = ''.join(c if c.isprintable() else ' ' for c in shown)
    # A longer one beside a bar leaves no room for the bars.
    return shown if len(shown) <= 25 else f'{shown[:24]}…'


def labels(names: Iterable[str]) -> list[str]:
    return [label(name) for name in names]


def changes(names: Sequence[str]) -> list[str]:
    """Headers of the others' differences to the first."""
    return [f'{label(name)} less {names[0]}' for name in names[1:]]


def look(name: str, of_page: Sequence[str]) -> tuple[str, str]:
    """Colour and kind of line, the same all over a page."""
    place = of_page.index(name)
    return _PAINTS[place % len(_PAINTS)], _STYLES[place % len(_STYLES)]


def legend(names: Iterable[str], of_page: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(look(name, of_page)[0], 'block', label(name)) for name in names]


def bar(
    paint: str, value: Any, show: formats.Show, ends: tuple[float, float] | None
) -> charts.Bar | None:
    """A bar with its whisker; None if there is no figure."""
    length = formats.number(value)
    if length is None:
        return None
    return charts.Bar(paint, length, ends, show(length))


def settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of one line, the models' identities, and versions."""
    plain = (str, int, float)
    stored = mapping(result.get('settings'))
    identities = mapping(stored.get('models')).items()
    pairs: list[tuple[str, Any]] = list(stored.items())
    pairs += [(f'models.{name}', value) for name, value in identities]
    pairs += [('judge identity', result.get('judge'))]
    pairs += [('partner identity', result.get('partner'))]
    pairs += list(mapping(result.get('versions')).items())
    return [
        (name[:300], str(value)[:300])
        for name, value in pairs
        if isinstance(value, plain)
    ]

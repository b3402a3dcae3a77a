"""A model's figures in the report: its name, its colour, its settings."""

from collections.abc import Iterable, Mapping
from typing import Any

from ppjax.evaluation import candidates
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats

# Colours of the page.
PAINTS = {'dense': 'dense', 'masked': 'heldout', 'pruned': 'learned'}


def models(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The models' figures, the dense one first; others than ours are left out."""
    found = mapping(result.get('models'))
    return {name: found[name] for name in candidates.LABELS if mapping(found.get(name))}


def labels(names: Iterable[str]) -> list[str]:
    return [candidates.LABELS[name] for name in names]


def legend(names: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(PAINTS[name], 'block', candidates.LABELS[name]) for name in names]


def bar(
    name: str, value: Any, show: formats.Show, ends: tuple[float, float] | None
) -> charts.Bar | None:
    """A bar in a model's colour; None if there is no figure."""
    length = formats.number(value)
    if length is None:
        return None
    return charts.Bar(PAINTS[name], length, ends, show(length))


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

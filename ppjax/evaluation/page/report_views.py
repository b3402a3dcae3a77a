"""A model's figures in the report: its name, its colour, its settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppjax.evaluation import efficiency
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts, formats, views

_LABELS = {'dense': 'Dense', 'masked': 'Masked', 'pruned': 'Pruned'}

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
    """A model as people read it, short and of characters that can be drawn."""
    shown = formats.printable(_LABELS.get(name, name))
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


def at(value: Any, path: str) -> Any:
    """What is under a path of keys, as 'nll.mean'; None if there is nothing."""
    for key in path.split('.'):
        value = mapping(value).get(key)
    return value


def bars(
    models: Mapping[str, Any],
    of_page: Sequence[str],
    path: str,
    show: formats.Show,
    interval: str = 'interval',
) -> list[charts.Bar]:
    """A bar for each model that has the figure, with its whisker.

    Args:
        models: their figures.
        of_page: the page's models in their order.
        path: to the figure.
        show: as the text beside the bar.
        interval: path to the ends of the whisker.
    """
    found = []
    for name, own in models.items():
        value = formats.number(at(own, path))
        if value is not None:
            ends = formats.interval(at(own, interval))
            paint, _ = look(name, of_page)
            found.append(charts.Bar(paint, value, ends, show(value)))
    return found


# A row: its label, the path to each model's figure, how that is shown, and the path
# to its interval or to what it is a part of, or ''.
Row = tuple[str, str, formats.Show, str]


def table(
    name: str,
    models: Mapping[str, Any],
    rows: Iterable[Row],
    title: str = '',
    *,
    folded: bool = False,
) -> views.Table:
    """The models' figures side by side, a column for each."""
    cells = [
        (
            label,
            [views.cell(at(own, path), show, at(own, of)) for own in models.values()],
        )
        for label, path, show, of in rows
    ]
    return views.Table(name, labels(models), cells, title, folded)


def score_rows(models: Mapping[str, Any], show: formats.Show) -> list[Row]:
    """Rows that all scores have which a judge gives: means, spread, to the first model.

    Args:
        models: by name; differences are to the first.
        show: a score.
    """
    return [
        ('Mean over personas', 'mean_over_personas', show, 'interval'),
        (
            f'Less that of {next(iter(models), "")}',
            'to_dense.mean',
            formats.points,
            'to_dense.interval',
        ),
        ('Standard deviation over personas', 'std_over_personas', show, ''),
        ('Mean over answers', 'mean', show, ''),
    ]


def sizes(name: str, stored: Mapping[str, Any], title: str = '') -> views.Table:
    """An `efficiency.Efficiency`, dense and pruned side by side."""
    rows = [
        (
            row.label,
            [
                views.TableCell(row.dense),
                views.TableCell(row.pruned),
                views.TableCell(
                    f'{row.ratio:.3f}', f'{formats.signed(100 * (row.ratio - 1), 1)} %'
                ),
            ],
        )
        for row in efficiency.table(stored)
    ]
    columns = ('Dense', 'Pruned', 'Pruned / dense')
    return views.Table(name, columns, rows, title, folded=bool(title))


def asked(result: Mapping[str, Any], role: str) -> str:
    """The judge of a result, or the partner of its dialogues."""
    name = at(result, f'settings.{role}_model') or result.get(role)
    return str(name or f'a {role}')


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

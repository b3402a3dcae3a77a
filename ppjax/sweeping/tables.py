"""A sweep's results as tables: for the page, as Markdown, as CSV."""

from collections.abc import Sequence
import csv
import io
from typing import Any

from ppjax.pages import formats, views
from ppjax.sweeping import aggregate, grid, results

_DIGITS = 4
_MODELS = {
    'dense': 'Dense',
    'random': 'Random mask',
    'one_shot': 'One-shot mask',
    'learned': 'Learned mask',
}
TO_DENSE = 'Learned − dense'


def spread(figure: aggregate.Figure | None, *, counted: bool = False) -> str:
    """The small letters beside a figure: its spread over seeds, what it is of."""
    if figure is None:
        return ''
    parts = []
    if figure.std is not None:
        parts.append(f'±\N{NO-BREAK SPACE}{figure.std:.{_DIGITS}f}')
    if counted:
        parts.append(f'n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{figure.count}')
    return ', '.join(parts)


def _cell(figure: aggregate.Figure | None, *, counted: bool = False) -> views.TableCell:
    if figure is None:
        return views.NOTHING
    return views.TableCell(
        formats.signed(figure.mean, _DIGITS), spread(figure, counted=counted)
    )


def settings_table(
    found: Sequence[results.Result], axes: Sequence[grid.Axis]
) -> views.Table:
    """Every setting: mean NLL of all models, over personas and seeds."""
    rows = []
    for setting in aggregate.settings(found):
        cells = [
            views.TableCell(f'{setting.nll[name]:.{_DIGITS}f}') for name in _MODELS
        ]
        rows.append(
            (_setting_label(setting, axes), [*cells, _cell(setting.gain, counted=True)])
        )
    return views.Table('settings', [*_MODELS.values(), TO_DENSE], rows, 'Settings')


def personas_table(
    found: Sequence[results.Result], axes: Sequence[grid.Axis]
) -> views.Table | None:
    """Every setting and persona; None if there are no two personas."""
    settings = aggregate.settings(found)
    names = list(dict.fromkeys(name for x in settings for name in x.personas))
    if len(names) < 2:
        return None
    rows = [
        (
            _setting_label(setting, axes),
            [_cell(setting.personas.get(name)) for name in names],
        )
        for setting in settings
    ]
    return views.Table('personas', names, rows, f'{TO_DENSE}, by persona')


def _setting_label(setting: aggregate.Setting, axes: Sequence[grid.Axis]) -> str:
    label = aggregate.label(setting.values, axes)
    return f'{label}, global mask' if setting.is_global else label


def marginal_table(found: Sequence[results.Result], axis: str) -> views.Table | None:
    """An axis's values against its first; None if there is nothing to compare."""
    made = aggregate.marginals(found, axis)
    if len(made) < 2:
        return None
    first = grid.text_of(made[0].value)
    rows = [
        (
            grid.text_of(row.value),
            [_cell(row.gain, counted=True), _cell(row.difference, counted=True)],
        )
        for row in made
    ]
    return views.Table(
        f'axis-{axis}', [TO_DENSE, f'Difference to {first}'], rows, f'By {axis}'
    )


def versus_table(found: Sequence[results.Result]) -> views.Table | None:
    """Own masks against the global mask; None if there is none."""
    rows = [
        (
            row.persona or 'Mean',
            [_cell(row.own), _cell(row.shared), _cell(row.difference, counted=True)],
        )
        for row in aggregate.versus_global(found)
    ]
    if not rows:
        return None
    columns = [f'{TO_DENSE}, own mask', f'{TO_DENSE}, global mask', 'Global − own']
    return views.Table('global', columns, rows, 'Own against global mask')


def markdown(tables: Sequence[views.Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in tables:
        lines = [
            f'### {table.title}\n',
            f'| | {" | ".join(map(_plain, table.columns))} |',
            f'|---|{"---:|" * len(table.columns)}',
        ]
        for label, cells in table.rows:
            texts = [f'{cell.text} {cell.detail}'.strip() for cell in cells]
            lines.append(f'| {_plain(label)} | {" | ".join(texts)} |')
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _plain(text: str) -> str:
    return text.replace('|', '\\|')


def as_csv(
    found: Sequence[results.Result],
    axes: Sequence[grid.Axis],
    seconds: dict[str, float],
) -> str:
    """A line for each cell and persona measured.

    Args:
        found: the results.
        axes: of the grid.
        seconds: cell -> what it took; a global cell's lines all have the same.
    """
    text = io.StringIO()
    names = [axis.name for axis in axes]
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
        [
            'cell',
            *names,
            'mask',
            *results.MODELS,
            'learned_minus_dense',
            'answer_tokens',
            'seconds',
        ]
    )
    for result in found:
        figures: list[Any] = [result.nll[name] for name in results.MODELS]
        writer.writerow(
            [
                result.cell,
                *(grid.text_of(result.values[name]) for name in names),
                grid.GLOBAL if result.is_global else 'own',
                *(f'{x:.6f}' for x in [*figures, result.gain]),
                result.answer_tokens,
                seconds[result.cell],
            ]
        )
    return text.getvalue()

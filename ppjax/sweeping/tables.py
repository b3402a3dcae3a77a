"""A sweep's results as tables: for the page and as CSV."""

from collections.abc import Sequence
import csv
import io
from typing import Any

from ppjax.pages import formats, views
from ppjax.sweeping import aggregate, grid, results

_DIGITS = 4
TO_DENSE = 'Learned − dense'


def _cell(figure: aggregate.Figure | None, *, counted: bool = True) -> views.TableCell:
    """A figure; in small letters its spread over seeds, and what it is of."""
    if figure is None:
        return views.NOTHING
    parts = []
    if figure.std is not None:
        parts.append(f'±\N{NO-BREAK SPACE}{figure.std:.{_DIGITS}f}')
    if counted:
        parts.append(f'n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{figure.count}')
    return views.TableCell(formats.signed(figure.mean, _DIGITS), ', '.join(parts))


def compared(
    name: str, columns: Sequence[str], rows: Sequence[aggregate.Compared], title: str
) -> views.Table:
    """Gains and their differences side by side."""
    cells = [
        (row.label, [_cell(figure) for figure in (*row.gains, row.difference)])
        for row in rows
    ]
    return views.Table(name, columns, cells, title)


def settings(
    found: Sequence[results.Result], axes: Sequence[grid.Axis]
) -> list[views.Table]:
    """Every setting: mean NLL of all models, over personas and seeds.

    And, if there are two personas, every setting and persona.
    """
    rows, by_persona = [], []
    made = aggregate.settings(found)
    personas = list(dict.fromkeys(name for x in made for name in x.personas))
    for setting in made:
        label = aggregate.label(setting.values, axes)
        label = f'{label}, global mask' if setting.is_global else label
        cells = [
            views.TableCell(f'{setting.nll[name]:.{_DIGITS}f}')
            for name in results.MODELS
        ]
        rows.append((label, [*cells, _cell(setting.gain)]))
        own = [setting.personas.get(name) for name in personas]
        by_persona.append((label, [_cell(gain, counted=False) for gain in own]))
    columns = [*results.MODELS.values(), TO_DENSE]
    tables = [views.Table('settings', columns, rows, 'Settings')]
    if len(personas) > 1:
        title = f'{TO_DENSE}, by persona'
        tables.append(views.Table('personas', personas, by_persona, title))
    return tables


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

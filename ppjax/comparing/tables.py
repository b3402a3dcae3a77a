"""A comparison as tables: the paper's, and what it leaves out."""

from collections.abc import Mapping, Sequence
import csv
import io
from typing import Any

from ppjax.comparing import measures, methods, sizes
from ppjax.comparing import rows as rows_lib
from ppjax.comparing import statistics as statistics_lib
from ppjax.pages import formats, views
from ppjax.sweeping import grid

_COUNT = formats.decimals(0)


def _cell(found: statistics_lib.Estimate | None, show: formats.Show) -> views.TableCell:
    if found is None:
        return views.NOTHING
    low, high = found.interval
    detail = f'{show(low)} to {show(high)}'
    if found.std is not None:
        detail += f'; ±\N{NO-BREAK SPACE}{show(found.std).lstrip("+")} over seeds'
    return views.TableCell(show(found.value), detail)


def _recovery(text: str) -> str:
    return methods.Recovery.parse(text).label or 'without recovery'


def by_recovery(rows: Sequence[rows_lib.Row]) -> dict[str, list[rows_lib.Row]]:
    """Rows by what they are recovered on; the dense model as it is begins each."""
    found: dict[str, list[rows_lib.Row]] = {}
    for row in rows:
        found.setdefault(row.recovery, []).append(row)
    first = rows_lib.dense(rows)
    return {
        name: own if first is None or first in own else [first, *own]
        for name, own in found.items()
    }


def overview(rows: Sequence[rows_lib.Row]) -> list[views.Table]:
    """The paper's Tables 1, 4, 13 and 14: a table for each way to recover."""
    names, first = rows_lib.present(rows), rows_lib.dense(rows)
    columns = [measures.MEASURES[name].label for name in names]
    made: list[views.Table] = []
    for recovery, own in by_recovery(rows).items():
        found = []
        for row in own:
            cells = [
                _cell(row.estimate(name), measures.MEASURES[name].show)
                for name in names
            ]
            cells.append(_parameters(row))
            cells.append(views.cell(row.minutes, formats.decimals(1)))
            # Beside what the same recovery makes of it.
            plain = row is first and row.recovery != recovery
            found.append((row.full_label + ', as it is' * plain, cells))
        made.append(
            views.Table(
                f'overview-{len(made)}',
                [*columns, 'Parameters', 'Minutes a model'],
                found,
                f'Methods, {_recovery(recovery)}',
            )
        )
    return made


def _parameters(row: rows_lib.Row) -> views.TableCell:
    counts = {cell['size']['parameters']['unique'] for cell in row.cells}
    shown = [formats.quantity(count) for count in sorted(counts)]
    more = f'to {shown[-1]}' if len(shown) > 1 else ''
    return views.TableCell(shown[0], more)


def differences(rows: Sequence[rows_lib.Row], measure: str) -> views.Table:
    """A measure less the dense model's and less the best rival's, answer by answer."""
    of = measures.MEASURES[measure]
    first = rows_lib.dense(rows)
    found = []
    for row in rows:
        if row is first:
            continue
        rival = rows_lib.best_rival(rows, row, measure)
        cells = [
            _cell(row.estimate(measure), of.show),
            _cell(_less(row, first, measure), of.signed),
            _cell(_less(row, rival, measure), of.signed),
            views.TableCell(rival.label) if rival else views.NOTHING,
        ]
        label = f'{row.full_label}, {_recovery(row.recovery)}'
        found.append((label, cells))
    return views.Table(
        f'differences-{measure}',
        [of.label, 'Less dense', 'Less the best rival', 'Which that is'],
        found,
        f'{of.label}: paired differences',
    )


def _less(
    row: rows_lib.Row, other: rows_lib.Row | None, measure: str
) -> statistics_lib.Estimate | None:
    if other is None:
        return None
    return statistics_lib.difference(row.cells, other.cells, measure)


def personas(rows: Sequence[rows_lib.Row], measure: str) -> list[views.Table]:
    """A measure by persona, one table; none without two of them."""
    names = list(
        dict.fromkeys(
            str(cell['values'].get('persona', '')) for row in rows for cell in row.cells
        )
    )
    if len(names) < 2:
        return []
    of = measures.MEASURES[measure]
    found = []
    for row in rows:
        cells = []
        for name in names:
            own = [x for x in row.cells if str(x['values'].get('persona', '')) == name]
            cells.append(_cell(statistics_lib.estimate(own, measure), of.show))
        found.append((f'{row.full_label}, {_recovery(row.recovery)}', cells))
    title = f'{of.label} by persona'
    return [views.Table(f'personas-{measure}', names, found, title, folded=True)]


def failures(rows: Sequence[rows_lib.Row]) -> views.Table:
    """The paper's Table 10; with no judge, of all answers and by rule alone."""
    found = []
    for row in rows:
        types = [cell['types'] for cell in row.cells if cell['types']]
        whole = sum(own['answers'] for own in types)
        counts = {
            name: sum(own['counts'].get(name, 0) for own in types)
            for name in measures.TYPES
            if any(name in own['counts'] for own in types)
        }
        low = sum(counts.values())
        cells = [
            views.cell(float(low), _COUNT, float(whole)) if whole else views.NOTHING
        ]
        for name in measures.TYPES:
            if name not in counts:
                cells.append(views.NOTHING)
                continue
            share = formats.percent(counts[name] / max(low, 1))
            cells.append(views.TableCell(str(counts[name]), share))
        found.append((f'{row.full_label}, {_recovery(row.recovery)}', cells))
    columns = ['That fail', *(name.replace('_', '-') for name in measures.TYPES)]
    return views.Table('failures', columns, found, 'What is wrong with answers')


def model_sizes(rows: Sequence[rows_lib.Row]) -> views.Table:
    """The paper's Table 11: parameters in three ways, FLOPs of a prompt and an answer.

    The last column takes each model's own mean length of answers, where there are some.
    """
    found = []
    for row in rows:
        own = [cell['size'] for cell in row.cells]

        def mean(path: str, own: list[Any] = own) -> float:
            return sum(float(size[path]) for size in own) / len(own)

        def count(kind: str, own: list[Any] = own) -> views.TableCell:
            value = sum(size['parameters'][kind] for size in own) / len(own)
            return views.TableCell(formats.quantity(value))

        cells = [count('unique'), count('untied'), count('blocks')]
        cells += [
            views.TableCell(formats.quantity(mean(name), 'FLOP'))
            for name in ('prefill_flops', 'total_flops')
        ]
        tokens = [x['tokens'] for cell in row.cells for x in cell['answers']]
        if tokens:
            length = sum(tokens) / len(tokens)
            flops = mean('prefill_flops') + length * mean('flops_of_answer_token')
            detail = f'{length:.0f} tokens'
            cells.append(views.TableCell(formats.quantity(flops, 'FLOP'), detail))
        else:
            cells.append(views.NOTHING)
        found.append((f'{row.full_label}, {_recovery(row.recovery)}', cells))
    columns = [
        'Parameters',
        'Untied',
        'Of blocks',
        f'Prompt of {sizes.PROMPT:g}',
        f'And {sizes.ANSWER} tokens of answer',
        'And its own answers',
    ]
    return views.Table('sizes', columns, found, 'Sizes and FLOPs')


def spreads(rows: Sequence[rows_lib.Row], measure: str) -> views.Table:
    """The paper's Table 12: mean and standard deviation over answers."""
    of = measures.MEASURES[measure]
    found = []
    for row in rows:
        own = row.estimate(measure)
        if own is None:
            continue
        spread = f'±\N{NO-BREAK SPACE}{of.show(own.spread)}'
        cells = [
            views.TableCell(of.show(own.value), spread),
            views.TableCell(str(own.count)),
        ]
        found.append((f'{row.full_label}, {_recovery(row.recovery)}', cells))
    title = f'{of.label}: mean ± standard deviation over answers'
    return views.Table(f'spread-{measure}', [of.label, 'Answers'], found, title, True)


def curve_ends(rows: Sequence[rows_lib.Row]) -> views.Table:
    """How many examples a model has seen, and what it came to."""
    found = []
    for row in rows:
        ends = [cell['curve'][-1] for cell in row.cells if cell.get('curve')]
        if ends:
            examples, nll = (sum(x) / len(ends) for x in zip(*ends, strict=True))
            cells = [views.TableCell(f'{examples:.0f}'), views.TableCell(f'{nll:.3f}')]
            found.append((f'{row.full_label}, {_recovery(row.recovery)}', cells))
    columns = ['Examples seen', 'Held-out NLL']
    return views.Table('curves', columns, found, 'Ends of the curves')


def as_csv(figures: Sequence[Mapping[str, Any]]) -> str:
    """A line for each cell: values on axes, means, sizes, minutes."""
    axes = list(dict.fromkeys(name for cell in figures for name in cell['values']))
    names = [
        name
        for name in measures.MEASURES
        if any(name in cell['measures'] for cell in figures)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    sizes_of = ['parameters', 'prefill_flops', 'minutes']
    writer.writerow(['cell', *axes, *names, *sizes_of])
    for cell in figures:
        means: list[str] = []
        for name in names:
            items = cell['measures'].get(name)
            weight = sum(item[2] for item in items) if items else 0
            means.append(f'{sum(x[1] for x in items) / weight:.6f}' if weight else '')
        writer.writerow(
            [
                cell['cell'],
                *(grid.text_of(cell['values'].get(name, '')) for name in axes),
                *means,
                cell['size']['parameters']['unique'],
                f'{cell["size"]["prefill_flops"]:.0f}',
                f'{cell.get("minutes") or 0:.2f}',
            ]
        )
    return text.getvalue()

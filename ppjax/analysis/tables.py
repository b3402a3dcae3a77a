"""A comparison of masks as tables and as CSV."""

from collections.abc import Sequence
import csv
import io
import itertools

import numpy as np

from ppjax.analysis import closeness as closeness_lib
from ppjax.analysis import correlation, labels, study
from ppjax.pages import formats, views

Row = tuple[str, Sequence[views.TableCell]]

_DIGITS = 4
# Wider tables fit no page; the CSV has all pairs.
_MOST_COLUMNS = 12
_number = formats.decimals(_DIGITS)


def closeness(found: study.Study) -> views.Table:
    """Masks of one persona against masks of two, and chance."""
    means = found.closeness
    upper = np.triu_indices(len(found.masks), 1)
    chance = closeness_lib.Mean(float(found.chance[upper].mean()), None, len(upper[0]))
    named = (
        (f'One persona, two {found.kind}s', means.within),
        ('Two personas', means.between),
        (f'Two personas, one {found.kind}', means.between_same),
        (f'Two personas, two {found.kind}s', means.between_other),
        ('Any two masks, by chance', chance),
    )
    rows = [
        (name, [views.cell(x.value, _number, x.interval), _count(x.pairs)])
        for name, x in named
        if x is not None
    ]
    if (less := means.difference) is not None:
        signed = formats.signed
        rows.append(
            (
                'One persona − two personas'
                + (f', two {found.kind}s' if means.between_other else ''),
                [views.cell(less.value, signed, less.interval), _count(less.pairs)],
            )
        )
    columns = ['Jaccard similarity', 'Pairs of masks']
    return views.Table(
        'closeness', columns, rows, 'Similarity within and between personas'
    )


def _count(number: int) -> views.TableCell:
    return views.TableCell(f'{number:,}')


def r_text(found: correlation.Correlation) -> str:
    """r with its p values, or why there is none."""
    if found.r is None or found.p is None or found.mantel_p is None:
        return f'r is not defined: {found.undefined}'
    return (
        f'r = {formats.signed(found.r, 3)}, p {p_text(found.p)}, with permuted personas '
        f'{p_text(found.mantel_p)}'
    )


def p_text(p: float) -> str:
    """'= 0.012', or that it is below what three digits tell."""
    return '< 0.001' if p < 0.001 else f'= {p:.3f}'


_R_COLUMNS = ('Pearson’s r', 'p', 'p, personas permuted', 'Pairs of personas')


def _r_row(name: str, found: correlation.Correlation) -> Row:
    if found.r is None or found.p is None or found.mantel_p is None:
        cells = [views.TableCell(f'none: {found.undefined}'), *[views.NOTHING] * 2]
    else:
        cells = [
            views.TableCell(formats.signed(found.r, 3)),
            views.TableCell(p_text(found.p).removeprefix('= ')),
            views.TableCell(
                p_text(found.mantel_p).removeprefix('= '),
                f'of {found.permutations:,}',
            ),
        ]
    return name, [*cells, _count(found.pairs)]


def seeds(found: study.Study) -> views.Table:
    """Correlation of personas' similarities between each two repetitions."""
    rows = [_r_row(f'{x.first} and {x.second}', x.found) for x in found.seed_pairs]
    return views.Table('seeds', _R_COLUMNS, rows, f'Correlation between {found.kind}s')


def alignment(found: study.Alignment) -> views.Table:
    """Correlation of masks and texts."""
    rows = [_r_row('Masks and texts', found.found)]
    return views.Table('alignment', _R_COLUMNS, rows, 'Correlation of masks and texts')


def personas(found: study.Study) -> views.Table | None:
    """Similarity of each two personas; None for too many, or one."""
    names = found.personas
    if not 2 <= len(names) <= _MOST_COLUMNS:
        return None
    rows = [
        (name, [views.cell(float(x), formats.decimals(3)) for x in row])
        for name, row in zip(names, found.of_personas, strict=True)
    ]
    return views.Table('personas', names, rows, 'Jaccard similarity of personas’ masks')


def layers(found: study.LayerMeans) -> views.Table:
    """Similarity in every layer."""
    named = (
        ('One persona', found.within),
        ('Two personas', found.between),
        ('By chance', found.chance),
    )
    shown = [(name, values) for name, values in named if values is not None]
    rows = [
        (
            str(layer + 1),
            [views.cell(float(values[layer]), _number) for _, values in shown],
        )
        for layer in range(len(found.chance))
    ]
    columns = [name for name, _ in shown]
    return views.Table('layers', columns, rows, 'By layer', folded=True)


def masks(found: study.Study) -> views.Table:
    """What was compared."""
    rows = [
        (
            mask.name if found.repeated or found.kind == labels.SEED else mask.persona,
            [
                views.cell(1 - mask.mask.total / mask.mask.mask.size, formats.percent),
                _count(mask.mask.total),
                views.TableCell(str(mask.source.path)),
            ],
        )
        for mask in found.masks
    ]
    columns = ['Sparsity', 'Kept', 'File']
    return views.Table('masks', columns, rows, 'Masks', folded=True)


def as_csv(found: study.Study) -> str:
    """A line for each pair of masks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    sides = ('persona', 'repetition', 'file')
    header = [f'{side}_{which}' for which in 'ab' for side in sides]
    writer.writerow([*header, 'pair', 'jaccard', 'chance', 'text_cosine'])
    for i, j in itertools.combinations(range(len(found.masks)), 2):
        pair = found.masks[i], found.masks[j]
        alike = pair[0].persona == pair[1].persona
        cosine = _cosine(found.alignment, *pair)
        writer.writerow(
            [
                *(
                    x
                    for mask in pair
                    for x in (mask.persona, mask.repetition, mask.source.path)
                ),
                'within' if alike else 'between',
                f'{found.similarity[i, j]:.6f}',
                f'{found.chance[i, j]:.6f}',
                '' if cosine is None else f'{cosine:.6f}',
            ]
        )
    return text.getvalue()


def _cosine(
    found: study.Alignment | None,
    first: labels.ComparedMask,
    second: labels.ComparedMask,
) -> float | None:
    if found is None or not {first.persona, second.persona} <= set(found.personas):
        return None
    a, b = (found.personas.index(mask.persona) for mask in (first, second))
    return float(found.texts[a, b])

"""`compare.html`: a comparison's tables, bars and answers side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from ppjax.base import flags
from ppjax.comparing import config as config_lib
from ppjax.comparing import curves, measures, methods, tables
from ppjax.comparing import rows as rows_lib
from ppjax.pages import charts, drawing, templates, views
from ppjax.sweeping import clock, grid

# Questions a sparsity that answers are shown of; cells/ have all.
_MOST_QUESTIONS = 4
_NOTE = (
    'Means over personas and seeds, with 95 % bootstrap intervals over answers or '
    'questions. Rivals keep no fewer parameters of blocks than the persona mask of '
    'their sparsity. Less dense, less the best rival: differences on the same answers.'
)
_LEGEND = (
    ('dense', 'block', 'Dense'),
    ('learned', 'block', 'Ours'),
    ('heldout', 'block', 'Rivals'),
)


def _paint(row: rows_lib.Row) -> str:
    if row.method == methods.DENSE:
        return 'dense'
    return 'heldout' if row.is_rival else 'learned'


def _bars(
    title: str, rows: Sequence[rows_lib.Row], measure: str
) -> drawing.Drawing | None:
    """A bar for each row, sparsities apart, and a line where the dense model is."""
    of = measures.MEASURES[measure]
    first = rows_lib.dense(rows)
    reference = first.estimate(measure) if first else None
    groups = []
    for row in rows:
        found = row.estimate(measure)
        if found is None:
            continue
        bar = charts.Bar(_paint(row), found.value, found.interval, of.show(found.value))
        line = reference.value if reference and row is not first else None
        groups.append(charts.BarGroup(row.full_label, [bar], line))
    return charts.bar_groups_plot(title, groups, _LEGEND)


def _questions(rows: Sequence[rows_lib.Row]) -> list[views.JudgedQuestion]:
    """The first question of some personas, and what each row of one sparsity answers."""
    asked: dict[tuple[float, str, str], list[tuple[str, views.JudgedAnswer]]] = {}
    dense = rows_lib.dense(rows)
    ours = [row for row in rows if row.recovery == config_lib.NO_RECOVERY]
    for sparsity in sorted({row.sparsity for row in ours if row.sparsity is not None}):
        for row in [x for x in ours if x is dense or x.sparsity == sparsity]:
            for cell in row.cells:
                if not cell['answers']:
                    continue
                one = cell['answers'][0]
                persona = str(cell['values'].get('persona', one['group']))
                key = (sparsity, persona, one['question'])
                known = asked.setdefault(key, [])
                if row.label not in [label for label, _ in known]:
                    known.append((row.label, _answer(row.label, one)))
    found: list[views.JudgedQuestion] = []
    taken: dict[float, int] = {}
    for (sparsity, persona, question), answers in asked.items():
        taken[sparsity] = taken.get(sparsity, 0) + 1
        if taken[sparsity] <= _MOST_QUESTIONS:
            group = f'{persona}, {100 * sparsity:g} %'
            found.append(views.JudgedQuestion(group, question, answers))
    return found


def _answer(label: str, row: Mapping[str, Any]) -> views.JudgedAnswer:
    score = row['score']
    remarks = [] if row['type'] in ('', 'none') else [row['type'].replace('_', '-')]
    shown = '' if score is None else f'{score:.1f}'
    return views.JudgedAnswer(label, shown, remarks, row['answer'])


def sections(rows: Sequence[rows_lib.Row]) -> list[views.Section]:
    """What the page shows, and compare.md as far as it is tables."""
    found = []
    names = rows_lib.present(rows)
    parts = tables.by_recovery(rows)
    shown = tables.overview(rows)
    for table, own in zip(shown, parts.values(), strict=True):
        plots = [_bars(f'{measures.MEASURES[x].label}', own, x) for x in names]
        found.append(
            views.Section(table.title, 'Lower is better of NLL.', plots, [table])
        )
    if curve := curves.plot(rows):
        found.append(
            views.Section(
                'Curves',
                'Held-out NLL while models learn, over the examples that they have '
                'seen: steps times examples a step, stage after stage, and rows that '
                'a refit takes.',
                [curve],
                [tables.curve_ends(rows)],
            )
        )
    found.append(
        views.Section(
            'Paired differences',
            'On the same answers or questions, so that what is hard for all cancels.',
            tables=[tables.differences(rows, name) for name in names],
        )
    )
    by_persona = [
        table
        for name in names
        if measures.MEASURES[name].of_persona
        for table in tables.personas(rows, name)
    ]
    if by_persona:
        found.append(views.Section('Persona by persona', '', tables=by_persona))
    questions = _questions(rows)
    if any(cell['types'] for row in rows for cell in row.cells):
        found.append(
            views.Section(
                'Answers',
                'Greedy answers. With a judge, types are of those with a score below '
                '60 (paper, Table 10); without, of all, and rules alone find them.',
                tables=[tables.failures(rows)],
                questions=questions,
            )
        )
    found.append(
        views.Section(
            'Sizes',
            'By the shape; what is padded with zeros counts as gone. A multiply-add is '
            "2 FLOPs; the prompt's unembedding is left out, as in the paper's Table 11.",
            tables=[tables.model_sizes(rows)],
        )
    )
    spreads = [
        tables.spreads(rows, x) for x in names if measures.MEASURES[x].of_persona
    ]
    found.append(views.Section('Spread over answers', '', tables=spreads))
    return [full for part in found if (full := part.filled())]


def render(
    cfg: config_lib.CompareConfig,
    parts: Sequence[views.Section],
    cells: int,
    seconds: float,
    versions: Mapping[str, str],
) -> str:
    """The page as HTML text.

    Args:
        cfg: of the comparison.
        parts: see `sections`.
        cells: how many there are.
        seconds: that their models took.
        versions: what ran.
    """
    axes = [(axis.name, ', '.join(map(grid.text_of, axis.values))) for axis in cfg.axes]
    return templates.render(
        'ppjax.pages',
        'grid.html.jinja',
        title='Comparison',
        kicker='Comparison of methods',
        heading=', '.join(name for name, _ in axes),
        facts=[
            ('Base model', cfg.base_model, ''),
            ('Cells', cells, f'models made in {clock.duration(seconds)}'),
        ],
        axes=axes,
        note=_NOTE,
        sections=parts,
        again='The same command goes on with this comparison; more values on an axis '
        'extend it.',
        command=f'python -m ppjax.compare --flagfile={cfg.output_dir}/config.flags',
        settings=flags.to_flagfile(cfg, omit=('overwrite',)),
        versions=list(versions.items()),
        where='Figures of every cell, answer by answer, are under cells/.',
    )

"""`sweep.html`: a sweep's tables and plots, in the look of `report.html`."""

from collections.abc import Sequence
import dataclasses

from ppjax.base import flags
from ppjax.pages import charts as page_charts
from ppjax.pages import drawing, templates, views
from ppjax.sweeping import aggregate, charts, clock, grid, results, tables
from ppjax.sweeping import config as config_lib

_ROWS = 'calibration_rows'
_NOTE = (
    'All figures are the learned mask’s held-out NLL minus the dense model’s on the '
    'same answers, in nats per answer token: lower is better, and below 0 the pruned '
    'model expects the persona’s answers better than the dense one. ± is the standard '
    'deviation over seeds of each seed’s mean; n counts cells, or pairs of cells that '
    'differ on this axis alone.'
)


def _scaling(
    found: Sequence[results.Result], axes: Sequence[grid.Axis]
) -> list[drawing.Drawing]:
    """A curve over calibration rows for each persona, a plot for each setting."""
    if _ROWS not in aggregate.compared_axes(axes):
        return []
    rest = [axis for axis in axes if axis.name != _ROWS]
    made = []
    for number, (values, lines) in enumerate(aggregate.curves(found, _ROWS), start=1):
        plot = page_charts.curves_plot(
            f'Calibration rows {number}',
            [
                (
                    persona or 'Learned mask',
                    [(x, y.mean, y.std or 0.0, y.std or 0.0) for x, y in points],
                )
                for persona, points in lines.items()
            ],
            axis='calibration rows',
            unit=charts.UNIT,
            reference='Dense model',
        )
        # What users named may stand in HTML, which escapes it, and not in SVG.
        title = f'Calibration rows, {aggregate.label(values, rest)}'
        made.append(dataclasses.replace(plot, title=title, label=plot.title))
    return made


def sections(
    found: Sequence[results.Result], axes: Sequence[grid.Axis]
) -> list[views.Section]:
    """What the page shows, and sweep.md as far as it is tables."""
    made = []
    scaling = _scaling(found, axes)
    if scaling:
        made.append(
            views.Section(
                'Data scaling', 'What more calibration rows are worth.', plots=scaling
            )
        )
    for axis in aggregate.compared_axes(axes):
        rows = aggregate.marginals(found, axis)
        if len(rows) < 2:
            continue
        columns = [tables.TO_DENSE, f'Difference to {rows[0].label}']
        made.append(
            views.Section(
                f'Comparison by {axis}',
                'Means over all that else varies, and paired differences to the '
                'first value.',
                plots=[charts.dots_plot(f'{tables.TO_DENSE}, by {axis}', rows)],
                tables=[tables.compared(f'axis-{axis}', columns, rows, f'By {axis}')],
            )
        )
    rows = aggregate.versus_global(found)
    if rows:
        names = ['Own mask', 'Global mask']
        columns = [f'{tables.TO_DENSE}, {name.lower()}' for name in names]
        columns.append('Global − own')
        title = 'Own against global mask'
        made.append(
            views.Section(
                'Persona-specific and global masks',
                'A mask of its own for every persona, against one mask learned from '
                'the rows of all of them; means over all that else varies.',
                plots=[charts.dots_plot('Own and global masks', rows, names)],
                tables=[tables.compared('global', columns, rows, title)],
            )
        )
    made.append(
        views.Section(
            'All settings',
            'Means over personas and seeds.',
            tables=tables.settings(found, axes),
        )
    )
    return made


def render(
    cfg: config_lib.SweepConfig,
    parts: Sequence[views.Section],
    seconds: dict[str, float],
    versions: dict[str, str],
) -> str:
    """The page as HTML text.

    Args:
        cfg: of the sweep.
        parts: see `sections`.
        seconds: cell -> what it took.
        versions: what the sweep ran with.
    """
    axes = [(axis.name, ', '.join(map(grid.text_of, axis.values))) for axis in cfg.axes]
    names = ', '.join(name for name, _ in axes)
    return templates.render(
        'ppjax.pages',
        'grid.html.jinja',
        title=f'Sweep over {names}',
        kicker='Sweep of mask learning',
        heading=names,
        facts=[
            ('Base model', cfg.base_model, ''),
            (
                'Cells',
                len(seconds),
                f'learned in {clock.duration(sum(seconds.values()))}',
            ),
        ],
        axes=axes,
        note=_NOTE,
        sections=parts,
        again='The same command goes on with this sweep; more values on an axis extend '
        'it.',
        command=f'python -m ppjax.sweep --flagfile={cfg.output_dir}/config.flags',
        settings=flags.to_flagfile(cfg, omit=('overwrite',)),
        versions=list(versions.items()),
        where='Every cell is a run directory of its own under cells/.',
    )

"""The report's plots, as inline SVG in the page's colours."""

from collections.abc import Sequence
from typing import Any

from matplotlib import ticker
import numpy as np

from ppjax.evaluation import efficiency
from ppjax.evaluation.page import run_results
from ppjax.pages import drawing, formats
from ppjax.pages.drawing import PAINTS

_HEAT_BINS = 96


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a 12th of the run, cut short at its ends.

    Symmetric at the start, where curves fall steeply; towards the end it loses its
    right side only, so that the last values are not single ones.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(len(values) // 24, index)
    right = np.minimum(left, index[::-1])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, paint: str) -> None:
    """Each step's value pale, their running mean over it."""
    if len(values) < 50:
        axes.plot(
            steps, values, color=PAINTS[paint], marker='.', markersize=6, linewidth=1.4
        )
        return
    axes.plot(steps, values, color=PAINTS[paint], alpha=0.4, linewidth=0.7)
    axes.plot(steps, _smooth(values), color=PAINTS[paint])


def _label_steps(axes: Any) -> None:
    axes.set_xlabel('optimizer step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


# Of models whose held-out likelihood is a line across: how it is drawn.
_LINES = {
    'dense': ('dense', 'dashed'),
    'one_shot': ('one_shot', 'dashdot'),
    'random': ('random', 'dotted'),
    'refitted': ('one_shot', 'dashdot'),
}


def loss_plot(run: run_results.ReportedRun) -> drawing.Drawing | None:
    """Of mask learning."""
    return _losses(
        run, run.metrics, 'train', ('dense', 'one_shot', 'random'), 'Loss over steps'
    )


def recovery_plot(run: run_results.ReportedRun) -> drawing.Drawing | None:
    """Loss of what was learned after pruning."""
    return _losses(
        run,
        run.recovery_metrics,
        'recover',
        ('dense', 'refitted'),
        'Loss of recovery over steps',
    )


def refit_plot(run: run_results.ReportedRun) -> drawing.Drawing | None:
    """What reconstruction leaves of each layer's error."""

    def left(name: str) -> tuple[np.ndarray, np.ndarray]:
        layers, after = run_results.series(run.refit_metrics, 'compensate', name)
        same, before = run_results.series(
            run.refit_metrics, 'compensate', f'{name}_before'
        )
        if not np.array_equal(layers, same):
            return np.array([]), np.array([])
        return layers, 100 * after / np.maximum(before, 1e-30)

    layers, held = left('heldback_error')
    fit_layers, fitted = left('fit_error')
    if not len(layers):
        return None

    def paint(axes: Any) -> None:
        axes.plot(layers, held, color=PAINTS['heldout'], marker='o')
        axes.plot(fit_layers, fitted, color=PAINTS['learned'], marker='.')
        axes.set_ylim(0, max(100.5, 1.03 * held.max()))
        axes.set_xlabel('layer')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g} %'))

    return drawing.Drawing(
        'Error that reconstruction leaves',
        paint,
        label='Reconstruction',
        legend=[
            ('heldout', 'solid', f'Texts held back, {held.mean():.0f} % on average'),
            ('learned', 'solid', f'Texts that were fitted, {fitted.mean():.0f} %')
            if len(fitted)
            else ('learned', 'solid', 'Texts that were fitted'),
        ],
        note='Squared error before the refit is 100 %.',
    )


def _losses(
    run: run_results.ReportedRun,
    metrics: list[dict[str, Any]],
    stage: str,
    models: Sequence[str],
    label: str,
) -> drawing.Drawing | None:
    """Loss and held-out likelihood over a stage's steps, and models beside them."""
    steps, loss = run_results.series(metrics, stage, 'loss')
    held_steps, held = run_results.series(metrics, 'heldout', 'heldout_nll')
    # A stage without steps measures its start all the same.
    if not len(loss) and len(held) < 2:
        return None
    rows = run_results.likelihood_rows(run)
    lines = {row.name: row.nll for row in rows if row.name in models}
    # A held-out figure weighs like a tenth of the run: there are few of them.
    weight = max(1, len(loss) // 10)
    core = np.concatenate([loss, np.repeat(held, weight)])
    low, high = drawing.readable_limits(core, lines.values())

    def paint(axes: Any) -> None:
        if len(loss):
            _curve(axes, steps, loss, 'learned')
        if len(held):
            axes.plot(held_steps, held, color=PAINTS['heldout'], marker='o')
        for name, value in lines.items():
            colour, line = _LINES[name]
            if low <= value <= high:
                axes.axhline(value, color=PAINTS[colour], linestyle=line, linewidth=1.3)
        axes.set_ylim(low, high)
        axes.set_ylabel('nats per answer token')
        _label_steps(axes)

    def beyond(value: float) -> str:
        if low <= value <= high:
            return ''
        return ', above the plot' if value > high else ', below the plot'

    legend = []
    if len(loss):
        note = f'; up to {loss.max():.3f}, above the plot' if loss.max() > high else ''
        legend.append(('learned', 'solid', f'Loss on the calibration set{note}'))
    if len(held):
        legend.append(('heldout', 'solid', f'Held-out NLL, now {held[-1]:.4f}'))
    legend += [
        (*_LINES[name], f'{run_results.MODELS[name]} {value:.4f}{beyond(value)}')
        for name, value in lines.items()
    ]
    note = 'Thin: each step. Thick: running mean.' if len(loss) >= 50 else ''
    return drawing.Drawing(
        'Loss', paint, height=2.9, legend=legend, note=note, label=label
    )


def _log_ticks(axes: Any, form: str) -> None:
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    # Over many decades, labels between the powers of ten would overlap.
    between = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=between, numticks=8))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: form.format(y)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


_METRICS = (
    (
        'flip_fraction',
        'Mask bits flipped by each step',
        100.0,
        '{:g} %',
        'Share of all L x F bits; logarithmic.',
    ),
    ('grad_norm', 'Gradient norm', 1.0, '{:g}', 'Over all scores; logarithmic.'),
    ('learning_rate', 'Learning rate', 1.0, '', ''),
)


def _step_plot(
    run: run_results.ReportedRun,
    name: str,
    title: str,
    unit: float,
    form: str,
    note: str,
) -> drawing.Drawing | None:
    """A metric over steps, logarithmic with labels of a `form`, or from 0 up."""
    steps, values = run.series('train', name)
    if not len(values):
        return None
    shown = values > 0 if form else np.full(len(values), True)
    if not shown.all():
        note += f' Not shown: {(~shown).sum()} at 0.'

    def paint(axes: Any) -> None:
        if form:
            _curve(axes, steps[shown], unit * values[shown], 'learned')
            _log_ticks(axes, form)
        else:
            axes.plot(steps, values, color=PAINTS['learned'])
            axes.set_ylim(bottom=0)
        _label_steps(axes)

    return drawing.Drawing(title, paint if shown.any() else None, note=note)


def step_plots(run: run_results.ReportedRun) -> list[drawing.Drawing]:
    """Loss, flips, gradient norm and learning rate, as far as they are there."""
    plots = [loss_plot(run), *(_step_plot(run, *metric) for metric in _METRICS)]
    return [plot for plot in plots if plot]


def kept_share(mask: np.ndarray, bins: int) -> np.ndarray:
    """Share of channels kept in runs of neighbours, bool [L, F] -> [L, bins]."""
    edges = np.linspace(0, mask.shape[1], min(bins, mask.shape[1]) + 1).round()
    starts = edges[:-1].astype(int)
    sums = np.add.reduceat(mask.astype(float), starts, axis=1)
    return sums / np.diff(edges)[None, :]


def _heat_plot(mask: np.ndarray) -> drawing.Drawing:
    share = kept_share(mask, _HEAT_BINS)
    low, high = float(share.min()), float(share.max())
    layers = len(mask)

    def paint(axes: Any) -> None:
        axes.imshow(
            share,
            aspect='auto',
            cmap=drawing.fades(),
            extent=(0, mask.shape[1], layers + 0.5, 0.5),
            interpolation='none',
            vmin=low,
            vmax=max(high, low + 1e-6),
        )
        axes.grid(False)
        axes.set_xlabel('FFN channel')
        axes.set_ylabel('layer')
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))

    width = mask.shape[1] / share.shape[1]
    return drawing.Drawing(
        'Where channels are kept',
        paint,
        label='Kept channels',
        height=min(4.0, 1.6 + 0.05 * layers),
        note=f'Share kept among {width:.3g} neighbouring channels: pale '
        f'{100 * low:.0f} %, full colour {100 * high:.0f} %; on average '
        f'{100 * mask.mean():.1f} %.',
    )


def _overlap_plot(mask: np.ndarray, start: np.ndarray) -> drawing.Drawing:
    overlap = 100 * (mask & start).sum(axis=1) / mask.sum(axis=1)
    chance = 100 * float(start.mean())
    layers = np.arange(1, len(mask) + 1)

    def paint(axes: Any) -> None:
        axes.axhline(chance, color=PAINTS['random'], linestyle=':', linewidth=1.3)
        axes.plot(layers, overlap, color=PAINTS['learned'], marker='o')
        bottom = min(chance, overlap.min())
        axes.set_ylim(bottom - 0.06 * (100 - bottom) - 0.5, 100.5)
        axes.set_xlabel('layer')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g} %'))

    return drawing.Drawing(
        'Kept channels that the starting mask kept too',
        paint,
        label='Overlap with the start',
        legend=[
            ('learned', 'solid', f'Overlap, {overlap.mean():.1f} % on average'),
            ('random', 'dotted', f'Two unrelated masks, {chance:.1f} %'),
        ],
    )


def mask_plots(run: run_results.ReportedRun) -> list[drawing.Drawing]:
    # A row of blocks says nothing that its numbers do not.
    if run.mask is None or run.mask.granularity != 'channels':
        return []
    plots = [_heat_plot(run.mask.chosen)]
    if not run.is_learned or run.start_mask is None:
        return plots
    if run.start_mask.mask.shape == run.mask.mask.shape:
        plots.append(_overlap_plot(run.mask.chosen, run.start_mask.chosen))
    return plots


def sensitivity_plot(figures: dict[str, Any]) -> drawing.Drawing | None:
    """How sensitive all queries are, and which of them were kept."""
    histogram = run_results.mapping(figures.get('histogram'))
    try:
        counts = np.asarray(histogram.get('counts'), float)
        edges = np.asarray(histogram.get('edges'), float)
    except (TypeError, ValueError):
        return None
    threshold = formats.number(figures.get('threshold'))
    whole = counts.ndim == 1 and counts.size and edges.shape == (counts.size + 1,)
    if not whole or threshold is None or not np.isfinite([*counts, *edges]).all():
        return None

    def paint(axes: Any) -> None:
        middle = (edges[:-1] + edges[1:]) / 2
        for part, colour in (
            (middle < threshold, 'muted'),
            (middle >= threshold, 'learned'),
        ):
            widths = np.diff(edges)[part]
            axes.bar(middle[part], counts[part], width=widths, color=PAINTS[colour])
        axes.set_xlabel('sensitivity score (Eq. 2)')
        axes.set_ylabel('queries')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))

    return drawing.Drawing(
        'Sensitivity of the queries',
        paint,
        legend=[
            ('learned', 'block', f'kept, from {threshold:.4g} up'),
            ('muted', 'block', 'left out'),
        ],
    )


def bars_plot(rows: Sequence[efficiency.TableRow]) -> drawing.Drawing | None:
    drawn = [row for row in rows if row.drawn][::-1]
    if not drawn:
        return None

    def paint(axes: Any) -> None:
        places = np.arange(len(drawn))
        ratios = [100 * row.ratio for row in drawn]
        axes.barh(places, 100, height=0.56, color=PAINTS['line'])
        axes.barh(places, ratios, height=0.56, color=PAINTS['learned'])
        for place, ratio in zip(places, ratios, strict=True):
            axes.text(103, place, f'{ratio:.1f} %', va='center')
        axes.set_yticks(places, [row.label for row in drawn])
        axes.tick_params(axis='y', labelcolor=PAINTS['ink'])
        axes.set_xlim(0, 128)
        axes.set_xticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)

    return drawing.Drawing(
        'The pruned model as a share of the dense one',
        paint,
        label='Pruned as a share of dense',
        height=2.2,
        legend=[('learned', 'block', 'Pruned'), ('line', 'block', 'Dense, 100 %')],
    )

"""Held-out likelihood over the examples that a model has seen on its way."""

from collections.abc import Sequence

import numpy as np

from ppjax.base import json_lines
from ppjax.comparing import rows as rows_lib
from ppjax.comparing import stages as stages_lib
from ppjax.compensation import results as compensation_results
from ppjax.pages import charts, drawing


def read(stages: Sequence[stages_lib.Stage]) -> list[tuple[int, float]]:
    """(examples seen, nats per answer token) of a way, stage after stage.

    Rows that a refit takes count once, as those of a step do.
    """
    found: list[tuple[int, float]] = []
    before = 0
    for stage in stages:
        if stage.verb == 'compensate':
            stored = json_lines.stored_object(stage.path / compensation_results.FILE)
            before += (stored or {}).get('texts', {}).get('rows', 0)
        log = stage.path / 'metrics.jsonl'
        if not stage.batch_size or not log.exists():
            continue
        steps = [row for _, row in json_lines.read(log, 'Metrics')]
        found += [
            (before + row['step'] * stage.batch_size, row['heldout_nll'])
            for row in steps
            if 'heldout_nll' in row
        ]
        before += max((row['step'] for row in steps), default=0) * stage.batch_size
    return found


def plot(rows: Sequence[rows_lib.Row]) -> drawing.Drawing | None:
    """A line for each row, its mean over personas and seeds; None without curves."""
    lines = []
    for row in rows:
        own = [cell['curve'] for cell in row.cells if cell.get('curve')]
        if own:
            lines.append((row.full_label, _mean(own)))
    if not lines:
        return None
    return charts.curves_plot(
        'Held-out NLL over examples',
        lines,
        axis='examples seen',
        unit='nats per answer token',
        from_zero=False,
    )


def _mean(
    curves: Sequence[Sequence[Sequence[float]]],
) -> list[tuple[float, float, float, float]]:
    """Point by point, of as many as all of them have."""
    count = min(map(len, curves))
    points = np.array([curve[:count] for curve in curves], np.float64).mean(axis=0)
    return [(float(place), float(value), 0.0, 0.0) for place, value in points]

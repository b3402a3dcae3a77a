"""Bars and bands are as long as their values."""

import re
from typing import Any

import numpy as np
import pytest

from ppjax.evaluation.page import (
    report_evaluation,
    report_judged,
)
from ppjax.pages import charts
from tests.evaluation.page import samples


def test_labels_in_drawings_are_no_formulas():
    plot = charts.stacked_plot('Types', [('$\\frac$ <b>', [('ink', 1.0)], '$x$')], [])
    assert plot is not None
    assert '$\\frac$ &lt;b&gt;' in plot.svg
    assert '$x$' in plot.svg


def _spans(svg: str, colour: str) -> list[tuple[float, float]]:
    """From where to where each path of a colour goes."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        if f'var(--{colour})' in style:
            xs = [float(x) for x in re.findall(r'[ML] (\S+) \S+', path)]
            found.append((min(xs), max(xs)))
    return found


def test_bars_are_as_long_as_their_values():
    groups = [
        charts.BarGroup(
            'A',
            [
                charts.Bar('dense', 50.0, (40.0, 60.0), '50'),
                charts.Bar('learned', 25.0, None, '25'),
            ],
            reference=30.0,
        )
    ]
    plot = charts.bar_groups_plot('Bars', groups)
    assert plot is not None

    (dense,), (learned,) = (_spans(plot.svg, x) for x in ('dense', 'learned'))
    assert dense[0] == pytest.approx(learned[0])
    length = dense[1] - dense[0]
    assert learned[1] - learned[0] == pytest.approx(length / 2, rel=1e-3)
    inks = _spans(plot.svg, 'ink')
    inked = [(x - dense[0]) / length * 50 for span in inks for x in span]
    for end in (40.0, 60.0, 30.0):
        assert any(x == pytest.approx(end, abs=0.1) for x in inked), end


@pytest.mark.parametrize(
    ('reference', 'start'), [(30.0, 30.0), (25.0, 25.0), (24.0, 25.0), (49.0, 25.0)]
)
def test_no_line_crosses_what_is_written_behind_a_bar(reference, start):
    bars = [
        charts.Bar('dense', 50.0, None, '50'),
        charts.Bar('learned', 25, None, '25'),
    ]
    plot = charts.bar_groups_plot('Bars', [charts.BarGroup('A', bars, reference)])
    assert plot is not None
    [(first, last)] = _spans(plot.svg, 'dense')
    [written] = [
        float(x)
        for x, text in re.findall(r' x="([\d.]+)"[^>]*>([^<]*)<', plot.svg)
        if text == '25'
    ]
    # A fortieth of the longest bar behind it.
    assert 50 * (written - first) / (last - first) == pytest.approx(
        start + 1.25, abs=0.1
    )


def test_long_labels_are_whole_and_leave_room_for_bars():
    label = 'llm_pruner, recovered on general instructions, 50 %, all seeds'
    group = charts.BarGroup(label, [charts.Bar('dense', 1.0, None, '1')])
    short = charts.BarGroup('A', [charts.Bar('learned', 1.0, None, '1')])
    plot = charts.bar_groups_plot('Bars', [group, short])
    assert plot is not None
    lines = re.findall(r'text-anchor: end[^>]* x="([\d.]+)"[^>]*>([^<]*)<', plot.svg)
    assert ' '.join(text for _, text in lines) == f'{label} A'
    [end] = {float(x) for x, _ in lines}
    # A letter is 5 points wide, in the mean.
    assert end > 5 * max(len(text) for _, text in lines)
    [bar] = _spans(plot.svg, 'dense')
    assert bar[1] - bar[0] > 0.3 * 4 * 72


def test_stacked_parts_follow_each_other():
    rows = [('A', [('dense', 2.0), ('learned', 1.0), ('heldout', 3.0)], '')]
    plot = charts.stacked_plot('Parts', rows, [])
    assert plot is not None
    assert charts.stacked_plot('Parts', [], []) is None
    (first,), (second,) = (_spans(plot.svg, x) for x in ('learned', 'heldout'))
    assert second[0] == pytest.approx(first[1])
    assert second[1] - second[0] == pytest.approx(3 * (first[1] - first[0]), rel=1e-3)


def _drawn(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(charts, name, lambda title, rows, *_: seen.append(rows))
    return seen


def test_failure_bars_are_of_all_answers(results, monkeypatch):
    seen = _drawn(monkeypatch, 'stacked_plot')
    report_judged.failure_types(results['failures'])
    (((_, _, _), (label, parts, text)),) = seen
    own = results['failures']['models']['pruned']
    assert label == 'Pruned'
    assert sum(length for _, length in parts) == pytest.approx(own['n'] / 60)
    assert text == f'{100 * own["n"] / 60:.1f} % of 60'


def test_bars_of_accuracy_and_time(results, monkeypatch):
    seen = _drawn(monkeypatch, 'bar_groups_plot')
    report_evaluation.sections({x: results[x] for x in ('piqa', 'measured_efficiency')})
    accuracy, time = (groups for groups in seen if any(x.bars for x in groups))
    (bar, _), figure = accuracy[0].bars, results['piqa']['models']['dense']['acc']
    ends = figure['value'] - figure['stderr'], figure['value'] + figure['stderr']
    assert (bar.value, bar.interval) == (figure['value'], pytest.approx(ends))
    assert accuracy[0].reference == 0.5
    dense, pruned = time[0].bars
    assert (dense.value, pruned.value) == pytest.approx((1.0, 0.8))
    assert pruned.interval == pytest.approx((0.75, 0.95))
    closed = results['measured_efficiency']['closed_form']
    flops = [closed[side]['prefill_flops'] for side in ('dense', 'pruned')]
    assert time[0].reference == pytest.approx(flops[1] / flops[0])


def test_the_band_is_one_deviation_within_the_scale():
    turns = np.arange(1.0, 4.0)
    means, stds = np.array([3.0, 4.8, 2.0]), np.array([0.5, 0.5, 0.25])
    assert charts.turns_plot('Turns', [], []) is None
    course = charts.DialogueLine('learned', 'solid', turns, means, stds)
    plot = charts.turns_plot('Turns', [course], [])
    assert plot is not None
    (line,) = re.findall(
        r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--learned\)',
        plot.svg,
    )
    # Of the marks that are defined apart the band alone has straight sides only.
    (band,) = re.findall(r'<path id="[^"]*" d="([^"C]*z\s*)"/>', plot.svg)
    line, band = (
        [float(y) for y in re.findall(r'[ML] \S+ (\S+)', path)] for path in (line, band)
    )
    unit = line[2] - line[0]  # From 3 down to 2.
    height = float(re.findall(r'viewBox="0 0 \S+ ([\d.]+)"', plot.svg)[0])
    found = {round(3 - (y + height - line[0]) / unit, 3) for y in band}
    assert found == {2.5, 3.5, 4.3, 5.0, 1.75, 2.25}
    assert 3 - (line[1] - line[0]) / unit == pytest.approx(4.8, abs=1e-3)


def test_a_turn_without_deviation_has_no_band(results, monkeypatch):
    for own in results['multiturn']['models'].values():
        own['turns'][0]['std'] = None
    seen = _drawn(monkeypatch, 'turns_plot')
    report_judged.multi_turn(results['multiturn'], samples.NAMES)
    for course in seen[0]:
        assert list(np.isnan(course.stds)) == [True] + [False] * (samples.TURNS - 1)
    assert len(seen[0]) == 2


def _ticks(*places: list[float]) -> set[str]:
    lines = [
        (str(i), [(x, 1.0, 0.0, 0.0) for x in own]) for i, own in enumerate(places)
    ]
    plot = charts.curves_plot('Curves', lines, axis='examples', unit='nats')
    return set(re.findall(r'>([\d.]+)<', plot.svg))


def test_places_that_are_close_together_are_told_in_round_numbers():
    assert {'32', '128', '512'} <= _ticks([32, 128, 512])
    crowded = _ticks([160, 640, 1200], [136, 152, 168])
    assert '250' in crowded
    assert not {'136', '152', '160', '168'} & crowded

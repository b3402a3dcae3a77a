"""Tables and the page of made-up results."""

import csv
from html import parser as html_parser
import io
import re

import pytest

from ppjax.pages import markdown
from ppjax.sweeping import config, grid, page, results, tables

_HOSTILE = '"\'><script>alert(1)</script>&|'


def _config(text):
    return config.SweepConfig(
        base_model='m',
        output_dir='runs/grid',
        calibration='{persona}',
        heldout='{persona}',
        grid=text,
    )


def _results(cfg):
    """Gains of 0.1 a seed, less with more rows, 0.05 more with a global mask."""
    found = []
    for values in grid.combinations(cfg.axes):
        is_global = values['persona'] == grid.GLOBAL
        for persona in cfg.personas if is_global else (values['persona'],):
            gain = 0.1 * values.get('seed', 0) + 0.05 * is_global
            gain -= 0.001 * values.get('calibration_rows', 0)
            nll = {'dense': 2.0, 'random': 9.0, 'one_shot': 3.0, 'learned': 2 + gain}
            own = values | {'persona': persona}
            name = cfg.cell_name(values)
            found.append(results.Result(name, own, is_global, nll, 7))
    return found


class _Checker(html_parser.HTMLParser):
    """Collects text, and every tag that is opened."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == 'id']

    def handle_data(self, data):
        self.text.append(data)


def _render(cfg, found):
    seconds = dict.fromkeys((x.cell for x in found), 60.0)
    html = page.render(cfg, page.sections(found, cfg.axes), seconds, {'jax': '1'})
    checker = _Checker()
    checker.feed(html)
    return html, checker


def test_page_shows_what_the_grid_has_axes_for():
    cfg = _config(
        'persona=a,b,global;calibration_rows=10,20;estimator=ste,gumbel;seed=0,1'
    )
    html, checker = _render(cfg, _results(cfg))
    titles = re.findall(r'<h2>(.*?)</h2>', html)
    assert titles == [
        'Data scaling',
        'Comparison by calibration_rows',
        'Comparison by estimator',
        'Persona-specific and global masks',
        'All settings',
        'Reproduce',
    ]
    assert checker.tags.count('figure') == 2 + 2 + 1
    assert len(set(checker.ids)) == len(checker.ids)
    # It loads nothing from elsewhere.
    assert not re.search(r'(src|href)="(?!#)', html)
    assert 'learned in 24 min' in html
    assert '--grid=persona=a,b,global;' in html


def test_page_of_one_cell():
    cfg = _config('persona=a')
    html, _ = _render(cfg, _results(cfg))
    assert re.findall(r'<h2>(.*?)</h2>', html) == ['All settings', 'Reproduce']
    assert 'all settings' in html


def test_what_users_name_is_text():
    cfg = _config(
        f'persona={_HOSTILE},b,global;calibration_rows=10,20;base_model={_HOSTILE},m'
    )
    html, checker = _render(cfg, _results(cfg))
    assert 'script' not in checker.tags
    assert 'Calibration rows, base_model m' in html
    assert any('<script>' in text for text in checker.text)
    assert '<script>' not in html


def test_markdown_tables():
    cfg = _config('persona=a|x,b;estimator=ste,gumbel;seed=0,1')
    made = [
        table
        for part in page.sections(_results(cfg), cfg.axes)
        for table in part.tables
    ]
    text = markdown.of_tables(made)
    assert '| gumbel | +0.0500 (± 0.0707, n = 4) | 0.0000 (± 0.0000, n = 4) |' in (
        text.replace('\N{NO-BREAK SPACE}', ' ')
    )
    rows = [line for line in text.splitlines() if line.startswith('|')]
    by_persona = [x for x in rows if 'a\\|x' in x]
    assert len(by_persona) == 1
    for line in rows:
        assert line.startswith('| ') or set(line) <= set('|-:')


def test_csv_has_a_line_for_each_cell_and_persona():
    cfg = _config('persona=a,b,global;seed=0,1')
    found = _results(cfg)
    seconds = dict.fromkeys((x.cell for x in found), 1.5)
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(found, cfg.axes, seconds))))
    assert len(lines) == 4 + 4
    assert [x['mask'] for x in lines] == ['own'] * 4 + ['global'] * 4
    last = lines[-1]
    assert (last['persona'], last['seed'], last['seconds']) == ('b', '1', '1.5')
    assert float(last['learned_minus_dense']) == pytest.approx(0.15)

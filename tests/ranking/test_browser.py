"""A real browser: a whole session, and what a person does to a page."""

import base64
import itertools
import json
import pathlib
import sqlite3

import pytest

from ppjax.ranking import answer_files, dimensions, questionnaire
from tests import browser
from tests.ranking import samples, serving

pytestmark = pytest.mark.skipif(
    browser.found() is None, reason='there is no Chromium on this machine'
)
_HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    with browser.running(tmp_path_factory.mktemp('profile')) as found:
        yield found


def _flags(folder: pathlib.Path) -> tuple[str, ...]:
    """Of a study of five items of three models, whose answers are hostile."""
    parts = []
    for model in samples.MODELS:
        rows = [
            row | {'answer': f'{row["answer"]} {_HOSTILE} {"and so on " * 300}'}
            for row in samples.rows(model)
        ]
        file = samples.write_rows(folder / f'{model}.jsonl', rows)
        parts.append(f'{model}={file}')
    return (
        f'--answers={",".join(parts)}',
        f'--output_dir={folder / "run"}',
        '--items=5',
    )


@pytest.fixture
def flags(tmp_path):
    return _flags(tmp_path)


def _asked(flags: tuple[str, ...]) -> questionnaire.Questionnaire:
    given = answer_files.read(flags[0].partition('=')[2])
    return questionnaire.draw(given, count=5, seed=0)


def _rows(flags: tuple[str, ...]) -> list[tuple]:
    run = pathlib.Path(flags[1].partition('=')[2])
    database = sqlite3.connect(run / 'ranking.sqlite')
    try:
        return database.execute(
            'SELECT item, dimension, model, rank FROM rankings ORDER BY item, rank'
        ).fetchall()
    finally:
        database.close()


def _stored(flags: tuple[str, ...], item: int, dimension: str) -> list[str]:
    return [row[2] for row in _rows(flags) if row[:2] == (item, dimension)]


def _list(dimension: str) -> str:
    return f'ol[data-dimension="{dimension}"]'


def _order(tab: browser.Tab, dimension: str = dimensions.NAMES[0]) -> str:
    found = json.dumps(f'{_list(dimension)} > li')
    return tab.run(
        f'[...document.querySelectorAll({found})].map(x => x.dataset.letter).join("")'
    )


def _begin(tab: browser.Tab, code: str) -> None:
    tab.run(f'document.querySelector("#code").value = {json.dumps(code)}')
    tab.click('main form button')
    _shows(tab, f'/p/{code}/1')


def _shows(tab: browser.Tab, path: str) -> None:
    tab.until(f'location.pathname === "{path}" && document.readyState === "complete"')


def _keep_all(tab: browser.Tab) -> None:
    for name in dimensions.NAMES:
        if tab.run(f"document.querySelector('{_list(name)}').dataset.settled") != (
            'true'
        ):
            tab.click(f'fieldset:has({_list(name)}) .keep')


def _problem(tab: browser.Tab) -> str:
    return tab.run('document.getElementById("problem").textContent')


def test_a_whole_session(chromium, flags):
    """Five items; a reload, a second tab, and a server that is killed in between."""
    asked = _asked(flags)
    first, second, third = dimensions.NAMES
    with serving.served(*flags, '--port=0') as server:
        tab = chromium.tab(server.url)
        _begin(tab, 'wren')

        # Nothing is sent before everything is in order.
        tab.click('#save')
        assert _problem(tab) == (
            'Not in order yet: Anthropomorphism, Character fidelity, Storyline quality.'
        )
        # It is in sight, and nothing lies over it.
        x, y = tab.run(
            '(() => { const box = document.getElementById("problem")'
            '.getBoundingClientRect(); return [box.x + 9, box.y + 9]; })()'
        )
        assert tab.run(f'document.elementFromPoint({x}, {y})?.id') == 'problem'
        tab.click(f'{_list(first)} li:nth-child(1) .down')
        assert _order(tab, first) == 'BAC'
        tab.click(f'{_list(second)} li:nth-child(3) .up')
        assert _order(tab, second) == 'ACB'

        # What was done on a page outlives a reload of it.
        tab.reload()
        assert (_order(tab, first), _order(tab, second)) == ('BAC', 'ACB')
        tab.click('#save')
        assert _problem(tab) == 'Not in order yet: Storyline quality.'
        _keep_all(tab)
        assert _order(tab, third) == 'ABC'
        tab.click('#save')
        _shows(tab, '/p/wren/2')
        a, b, c = asked.shown('wren', 1)
        assert _stored(flags, 1, first) == [b, a, c]
        assert _stored(flags, 1, second) == [a, c, b]
        assert _stored(flags, 1, third) == [a, b, c]

        # A second tab sends item 2; then the first, still open, sends another order.
        other = chromium.tab(f'{server.url}/p/wren')
        _shows(other, '/p/wren/2')
        _keep_all(other)
        other.click('#save')
        _shows(other, '/p/wren/3')
        _keep_all(tab)
        tab.click(f'{_list(first)} li:nth-child(2) .down')
        tab.click('#save')
        _shows(tab, '/p/wren/3')
        a, b, c = asked.shown('wren', 2)
        assert _stored(flags, 2, first) == [a, c, b]
        assert len(_rows(flags)) == 2 * 9

        # The server dies; the page says so and keeps what was done.
        tab.click(f'{_list(first)} li:nth-child(1) .down')
        _keep_all(tab)
        server.kill()
        tab.click('#save')
        tab.until('document.getElementById("problem").textContent.length > 0')
        assert _problem(tab).startswith('Not saved: the server does not answer.')
        port = server.port
    assert len(_rows(flags)) == 2 * 9
    with serving.served(*flags, f'--port={port}'):
        tab.click('#save')
        _shows(tab, '/p/wren/4')
        a, b, c = asked.shown('wren', 3)
        assert _stored(flags, 3, first) == [b, a, c]
        # The tab that was open all the while is at item 3 and may change it.
        _keep_all(other)
        other.click('#save')
        _shows(other, '/p/wren/4')
        for path in ('/p/wren/5', '/p/wren/thanks'):
            _keep_all(tab)
            tab.click('#save')
            _shows(tab, path)
        assert 'All 5 questions are ranked' in tab.run('document.body.innerText')
    rows = _rows(flags)
    assert len(rows) == 5 * 3 * 3 == len({row[:3] for row in rows})
    assert _stored(flags, 3, first) == [a, b, c]
    for item in range(1, 6):
        for name in dimensions.NAMES:
            own = [row for row in rows if row[:2] == (item, name)]
            assert [row[3] for row in own] == [1, 2, 3]
            assert {row[2] for row in own} == set(samples.MODELS)


@pytest.fixture(scope='module')
def page(chromium, tmp_path_factory):
    """The first item, in a window of a width, for somebody new."""
    flags = _flags(tmp_path_factory.mktemp('study'))
    codes = itertools.count()
    with serving.served(*flags, '--port=0') as server:

        def show(width: int = 1200, height: int = 900) -> browser.Tab:
            tab = chromium.tab(server.url, width=width, height=height)
            _begin(tab, f'code-{next(codes)}')
            return tab

        yield show


def test_keys_move_an_answer_and_keep_the_focus(page):
    tab = page()
    grip = f'{_list(dimensions.NAMES[1])} li:nth-child(1) .grip'
    tab.run(f'document.querySelector({json.dumps(grip)}).focus()')
    focused = 'document.activeElement.closest("li")?.dataset.letter'
    for key, order in (
        ('ArrowDown', 'BAC'),
        ('ArrowDown', 'BCA'),
        ('ArrowDown', 'BCA'),
        ('ArrowUp', 'BAC'),
        ('Home', 'ABC'),
        ('End', 'BCA'),
    ):
        tab.key(key)
        assert _order(tab, dimensions.NAMES[1]) == order
        assert tab.run(focused) == 'A'
    assert tab.run('document.activeElement.ariaLabel') == (
        'Character fidelity: answer A, place 3 of 3. The arrow keys move it.'
    )
    said = 'document.getElementById("said").textContent'
    assert tab.run(said) == 'Character fidelity: answer A is now 3 of 3.'
    assert _order(tab) == 'ABC'


def test_a_mouse_drags(page):
    tab = page()
    x, y = tab.place(f'{_list(dimensions.NAMES[0])} li:nth-child(1) .grip')
    end = tab.run(
        'document.querySelector("ol li:nth-child(3)").getBoundingClientRect().bottom'
    )
    tab.mouse('mousePressed', x, y)
    tab.mouse('mouseMoved', x, (y + end) / 2)
    tab.mouse('mouseMoved', x, end)
    assert _order(tab) == 'BCA'
    tab.mouse('mouseMoved', x, y)
    tab.mouse('mouseMoved', x, end)
    tab.mouse('mouseReleased', x, end)
    tab.mouse('mouseMoved', x, y)
    assert _order(tab) == 'BCA'
    assert tab.run('document.querySelectorAll(".dragged").length') == 0
    assert tab.run('document.querySelector("ol").dataset.settled') == 'true'


def test_a_finger_drags_the_handle_and_scrolls_elsewhere(page):
    tab = page(360, 740)
    tab.call('Emulation.setTouchEmulationEnabled', enabled=True)
    x, y = tab.place(f'{_list(dimensions.NAMES[0])} li:nth-child(3) .grip')
    tab.touch('touchStart', x, y)
    for step in range(1, 9):
        tab.touch('touchMove', x, y - 15 * step)
    tab.touch('touchEnd')
    assert _order(tab) == 'CAB'
    x, y = tab.place(f'{_list(dimensions.NAMES[1])} li:nth-child(3) .start')
    tab.touch('touchStart', x, y)
    for step in range(1, 9):
        tab.touch('touchMove', x, y - 15 * step)
    tab.touch('touchEnd')
    assert _order(tab, dimensions.NAMES[1]) == 'ABC'


@pytest.mark.parametrize('width', [320, 360, 768, 1200])
def test_nothing_is_wider_than_the_window(page, width):
    tab = page(width, 740)
    inner = tab.run('document.documentElement.scrollWidth')
    assert inner <= width
    # And what a finger is to hit is large enough.
    sizes = tab.run(
        '[...document.querySelectorAll("li button, #save")].map(x => '
        'x.getBoundingClientRect()).map(x => Math.min(x.width, x.height))'
    )
    assert min(sizes) >= 28
    assert base64.b64decode(tab.picture())[1:4] == b'PNG'


def test_long_answers_open(page):
    tab = page()
    height = 'document.querySelector("article .text").clientHeight'
    before = tab.run(height)
    tab.click('article .more')
    assert tab.run(height) > 2 * before
    assert tab.run('document.querySelector("article .more").hidden')


def test_texts_run_nothing(page):
    tab = page()
    assert tab.run('window.hit === undefined')
    assert tab.run('document.images.length') == 0
    assert '<script>window.hit=1</script>' in tab.run('document.body.innerText')
    # Nor would they if they became part of the page.
    tab.run(f'document.querySelector("article").innerHTML = {json.dumps(_HOSTILE)}')
    tab.run('new Promise(done => setTimeout(done, 200))')
    assert tab.run('window.hit === undefined')

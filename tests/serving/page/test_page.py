"""The page in a real browser, against an API whose answers are known."""

import base64
import contextlib
import json
import re

import pytest

from ppjax.serving.page import files
from tests import browser
from tests.personas.conftest import CardFiles
from tests.serving.page import fake_api

pytestmark = pytest.mark.skipif(
    browser.found() is None, reason='there is no Chromium on this machine'
)
_GREETING = '*She looks up.* Mind the twine.'


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    with browser.running(tmp_path_factory.mktemp('profile')) as found:
        yield found


@pytest.fixture
def api():
    made = fake_api.FakeApi()
    made.add('base-1b', dense=True, sparsity=0.0, system='')
    made.add('quill', title='Marta Quill', greeting=_GREETING)
    made.add('jack')
    with fake_api.running(made):
        yield made


@pytest.fixture
def open_page(chromium, api):
    def opened(*, width=1200, height=800):
        tab = chromium.tab(api.url, width=width, height=height)
        tab.until('document.querySelectorAll(".member").length > 1')
        return tab

    return opened


def _pick(tab, name):
    tab.click(f'[data-id={json.dumps(name)}]')
    tab.until(f'!$("chat").hidden && state.id === {json.dumps(name)}')


def _say(tab, text):
    tab.run('$("message").focus()')
    tab.write(text)
    tab.key('Enter')


def _answered(tab, count=1):
    """Waits until an answer is whole."""
    tab.until(f'!state.running && state.turns.length >= {2 * count}')


def _texts(tab, selector='#turns .text'):
    return tab.run(
        f'[...document.querySelectorAll({json.dumps(selector)})].map(x => x.textContent)'
    )


def _problem(tab):
    tab.until('!$("problem").hidden')
    return tab.run('$("problem").firstElementChild.textContent')


def test_the_cast_is_shown(open_page):
    tab = open_page()
    assert _texts(tab, '.member .name') == ['base-1b', 'Marta Quill', 'jack']
    assert _texts(tab, '.member .line') == [
        'As it is, without a persona.',
        'She looks up. Mind the twine.',
        'You are jack.',
    ]
    assert _texts(tab, '.member .tag') == ['Dense base model', *['25% pruned'] * 2]
    assert _texts(tab, '.member .face') == ['B1', 'MQ', 'JA']
    assert tab.run('$("count").textContent') == '2 personas on base-1b'


def test_a_conversation(open_page, api):
    tab = open_page()
    _pick(tab, 'quill')
    assert _texts(tab) == ['She looks up. Mind the twine.']
    assert tab.run('document.activeElement.id') == 'message'
    _say(tab, 'Busy?')
    _answered(tab)
    assert _texts(tab)[1:] == ['Busy?', 'Answer 1 nods to: Busy? ']
    assert _texts(tab, '#turns em') == ['She looks up.', 'nods']
    asked = api.asked[0]
    assert 0 <= asked.pop('seed') < 2**31
    # The server knows the persona's system message; a first message it is sent.
    assert asked == {
        'model': 'quill',
        'messages': [
            {'role': 'assistant', 'content': _GREETING},
            {'role': 'user', 'content': 'Busy?'},
        ],
        'stream': True,
        'stream_options': {'include_usage': True},
        'max_tokens': 256,
        'temperature': 0.7,
    }
    stats = _texts(tab, '.of-pruned .stats')[0]
    assert re.fullmatch(
        r'\d+ ms to first token · \d+\.\d tokens/s · 6 tokens', stats
    ), stats

    tab.click('#regenerate')
    tab.until('state.turns[1]?.answers[0].text.includes("Answer 2")')
    _answered(tab)
    assert api.asked[1]['messages'] == asked['messages']
    assert len(_texts(tab)) == 3

    _say(tab, 'And then?')
    _answered(tab, 2)
    assert [message['role'] for message in api.asked[2]['messages']] == [
        *('assistant', 'user', 'assistant', 'user')
    ]
    # It is still there after a reload, and each persona has its own.
    before = _texts(tab)
    tab.reload()
    tab.until('document.querySelectorAll("#turns .turn").length === 5')
    assert _texts(tab) == before
    _pick(tab, 'jack')
    assert _texts(tab) == []

    tab.run('history.back()')
    tab.until('state.id === "quill"')
    tab.click('#new')
    assert len(_texts(tab)) == 1
    assert tab.run('localStorage.getItem("ppjax.chat.base-1b.quill")') is None
    tab.click('#problem button')  # Undo.
    assert _texts(tab) == before
    tab.click('.back')
    tab.until('document.body.dataset.view === "cast"')


def test_words_show_as_they_come_and_can_be_stopped(open_page, api):
    tab = open_page()
    _pick(tab, 'jack')
    _say(tab, 'slow')
    tab.until('document.querySelector(".waiting .text")?.textContent.length > 40')
    assert tab.run('$("send").hidden && !$("stop").hidden')
    # Nothing is sent meanwhile.
    _say(tab, 'more')
    assert len(api.asked) == 1
    tab.click('#stop')
    _answered(tab)
    assert _texts(tab, '.stats')[0].endswith(' · stopped')
    length = len(_texts(tab)[1])
    assert length > 40
    tab.until('!$("send").hidden && $("stop").hidden')
    for _ in range(200):
        if api.gone:
            break
        tab.run('new Promise(done => setTimeout(done, 20))')
    assert api.gone == 1
    assert len(_texts(tab)[1]) == length
    # Escape does the same, and so does leaving.
    tab.run('$("message").value = ""')
    _say(tab, 'slow')
    tab.until('document.querySelector(".waiting .text")?.textContent.length > 5')
    tab.key('Escape')
    _answered(tab, 2)
    tab.run('regenerate()')
    tab.until('document.querySelector(".waiting .text")?.textContent.length > 5')
    _pick(tab, 'quill')
    tab.until('!state.running')
    assert len(_texts(tab)) == 1
    _pick(tab, 'jack')
    assert len(_texts(tab)) == 4


def test_a_chat_that_is_cleared_while_it_is_answered(open_page):
    tab = open_page()
    _pick(tab, 'jack')
    _say(tab, 'slow')
    tab.until('document.querySelector(".waiting .text")?.textContent.length > 5')
    tab.click('#new')
    tab.until('!state.running')
    assert _texts(tab) == []
    tab.reload()
    tab.until('state.id === "jack"')
    assert _texts(tab) == []


def test_dense_beside_pruned(open_page, api):
    tab = open_page()
    _pick(tab, 'quill')
    tab.click('#compare-label')
    _say(tab, 'Busy?')
    _answered(tab)
    assert _texts(tab, '.pair h3') == ['Pruned, 25%', 'Dense']
    by_model = {asked['model']: asked for asked in api.asked}
    own, dense = by_model['quill'], by_model['base-1b']
    system = {'role': 'system', 'content': 'You are Marta Quill.'}
    assert dense['messages'] == [system, *own['messages']]
    assert dense['seed'] == own['seed']
    assert len(_texts(tab, '.pair .stats')) == 2
    places = tab.run(
        '[...document.querySelectorAll(".pair .answer")].map(x => x.getBoundingClientRect().x)'
    )
    assert places[0] < places[1]
    # Both go on from what the persona said.
    api.asked.clear()
    _say(tab, 'So?')
    _answered(tab, 2)
    said = tab.run('state.turns[1].answers[0].text')
    assert all(asked['messages'][-2]['content'] == said for asked in api.asked)
    tab.click('#regenerate')
    _answered(tab, 2)
    tab.until('!state.running')
    # The choice is kept; beside the base itself there is nothing.
    api.late = 0.5  # The page is there before its cast.
    tab.reload()
    tab.until('$("compare").checked')
    _pick(tab, 'base-1b')
    assert tab.run('$("compare-label").hidden')
    api.asked.clear()
    _say(tab, 'Hi')
    _answered(tab)
    assert [asked['model'] for asked in api.asked] == ['base-1b']


def test_hostile_texts_are_texts(open_page, api):
    hostile = fake_api.HOSTILE
    api.add(
        f'x{hostile}#?%2f../"',
        title=f'T {hostile}',
        greeting=f'G {hostile} *{hostile}*',
        picture='javascript:window.hit=1',
        system=hostile,
    )
    tab = open_page()
    assert _texts(tab, '.member .name')[-1] == f'T {hostile}'
    tab.run('document.querySelectorAll(".member")[3].click()')
    tab.until('!$("chat").hidden')
    assert _texts(tab) == [f'G {hostile} {hostile}']
    assert tab.run('$("title").textContent') == f'T {hostile}'
    _say(tab, 'html')
    _answered(tab)
    assert _texts(tab)[-1] == f'{hostile} '
    _say(tab, hostile)
    _answered(tab, 2)
    assert api.asked[0]['model'] == f'x{hostile}#?%2f../"'
    assert hostile in _texts(tab)[-1]
    tab.reload()
    tab.until('document.querySelectorAll("#turns .turn").length === 5')
    assert tab.run('window.hit') is None
    # The page's own pictures and scripts, and no others.
    assert tab.run('document.querySelectorAll("script").length') == 1
    assert tab.run('document.querySelectorAll("#turns img, #turns script").length') == 0


@pytest.mark.parametrize(
    ('question', 'said'),
    [
        ('busy', 'The server is busy: too many answers wait. Try again in 7 s.'),
        ('down', 'The server is shutting down, or not ready yet.'),
        ('bad', 'temperature must be at most 2.'),
    ],
)
def test_refusals_are_said_and_can_be_tried_again(open_page, api, question, said):
    tab = open_page()
    _pick(tab, 'jack')
    _say(tab, question)
    assert _problem(tab) == said
    # The question stays, and is asked once more.
    assert _texts(tab) == [question]
    tab.click('#problem button')
    tab.until('!state.running')
    assert [asked['messages'] for asked in api.asked] == [
        [{'role': 'user', 'content': question}]
    ] * 2
    # Another takes its place.
    _say(tab, 'well')
    _answered(tab)
    assert _texts(tab)[0] == 'well'
    assert tab.run('$("problem").hidden')


def test_an_answer_that_breaks_off_keeps_what_came(open_page):
    tab = open_page()
    _pick(tab, 'jack')
    _say(tab, 'break')
    assert _problem(tab) == 'The engine broke.'
    assert _texts(tab)[1] == 'Answer 1 nods '
    assert 'The engine broke.' in _texts(tab, '.stats.bad')[0]
    tab.click('#problem button')
    tab.until('!state.running && state.turns[1]?.answers[0].text.includes("Answer 2")')


def test_a_server_that_is_gone(open_page, api):
    tab = open_page()
    _pick(tab, 'jack')
    tab.call('Network.enable')
    tab.call(
        'Network.emulateNetworkConditions',
        offline=True,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
    _say(tab, 'Hi')
    assert _problem(tab) == 'The server cannot be reached.'
    tab.run('loadCast()')
    assert len(_texts(tab, '.member .name')) == 3


def test_a_key_is_asked_for_and_kept_for_the_session(chromium, api):
    api.key = 'open sesame'
    api.pictures['quill'] = CardFiles.png()
    api.members[1]['picture'] = '/cast/quill/picture'
    tab = chromium.tab(api.url)
    tab.until('!$("key-form").hidden')
    tab.run('$("key").focus()')
    tab.write('wrong')
    tab.key('Enter')
    tab.run('loadCast()')
    assert tab.run('!$("key-form").hidden')
    tab.run('$("key").value = "open sesame"; $("key-form").requestSubmit()')
    tab.until('document.querySelectorAll(".member").length === 3')
    assert tab.run('$("key-form").hidden')
    tab.until('!!document.querySelector("[data-id=quill] .face.seen")')
    _pick(tab, 'quill')
    _say(tab, 'Hi')
    _answered(tab)
    assert 'open sesame' not in tab.run('JSON.stringify(localStorage)')
    assert 'open sesame' in tab.run('JSON.stringify(sessionStorage)')


def test_pictures(open_page, api):
    api.pictures['quill'] = CardFiles.png()
    for member in api.members[1:]:
        member['picture'] = f'/cast/{member["id"]}/picture'
    tab = open_page()
    tab.until('!!document.querySelector("[data-id=quill] .face.seen")')
    # Where there is none after all, the letters stay.
    tab.until('!document.querySelector("[data-id=jack] img")')
    assert _texts(tab, '[data-id=jack] .face') == ['JA']


def test_hundreds_are_searched_and_walked_by_keys(open_page, api):
    for number in range(300):
        api.add(f'p{number:03}', title=f'Person {number}', greeting='Good day.')
    tab = open_page()
    tab.run('document.body.focus()')
    tab.call('Input.dispatchKeyEvent', type='keyDown', key='/', text='/')
    assert tab.run('document.activeElement.id') == 'search'
    tab.write('person 29')
    shown = '[...document.querySelectorAll("#members li:not([hidden]) .name")]'
    tab.until(f'{shown}.length === 13')
    assert tab.run(f'{shown}[1].textContent') == 'Person 129'
    tab.key('ArrowDown')
    tab.key('ArrowDown')
    assert tab.run('document.activeElement.dataset.id') == 'p129'
    tab.key('ArrowUp')
    assert tab.run('document.activeElement.dataset.id') == 'p029'
    tab.run('$("search").focus()')
    tab.write('9')
    tab.key('Enter')
    tab.until('state.id === "p299"')
    tab.run('$("search").value = "nobody of that name"; filterCast()')
    assert tab.run('$("nobody").textContent') == 'Nobody in the cast is called so.'


def test_the_cast_is_kept_up_to_date(open_page, api):
    tab = open_page()
    _pick(tab, 'jack')
    _say(tab, 'Hi')
    _answered(tab)
    api.add('new', title='Newcomer')
    tab.run('loadCast()')
    tab.until('document.querySelectorAll(".member").length === 4')
    assert len(_texts(tab)) == 2
    del api.members[2]
    tab.run('loadCast()')
    tab.until('document.body.dataset.view === "cast"')
    assert 'jack is not in the cast' in tab.run('$("notice").textContent')


@pytest.mark.parametrize('kept', ['[1]', '{"a": 2}', '[{"role":"user"}]', 'x', 'null'])
def test_what_is_kept_may_be_damaged(open_page, kept):
    tab = open_page()
    tab.run(f'localStorage.setItem("ppjax.chat.base-1b.jack", {json.dumps(kept)})')
    tab.run(f'localStorage.setItem("ppjax.settings", {json.dumps(kept)})')
    tab.reload()
    tab.until('document.querySelectorAll(".member").length === 3')
    _pick(tab, 'jack')
    _say(tab, 'Hi')
    _answered(tab)


def test_settings_are_sent_and_kept(open_page, api):
    tab = open_page()
    tab.run(
        '$("temperature").value = 0; $("max-tokens").value = 12; '
        '$("temperature").dispatchEvent(new Event("input"))'
    )
    tab.reload()
    tab.until('document.querySelectorAll(".member").length === 3')
    _pick(tab, 'jack')
    _say(tab, 'Hi')
    _answered(tab)
    assert (api.asked[0]['temperature'], api.asked[0]['max_tokens']) == (0, 12)


@pytest.mark.parametrize(('width', 'height'), [(360, 740), (768, 900), (1280, 800)])
def test_everything_fits_the_screen(open_page, api, width, height):
    long = 'Countess Elisabeth of the Nine Lakes and ' + 'w' * 60
    api.add('long', title=long, greeting=f'{"x" * 300} ' + 'word ' * 80)
    tab = open_page(width=width, height=height)

    def fits():
        found = tab.run(
            '[document.documentElement.scrollWidth, document.documentElement.scrollHeight]'
        )
        assert found == [width, height], found

    fits()
    _pick(tab, 'long')
    tab.run('$("compare").click()')
    _say(tab, 'y' * 400)
    _answered(tab)
    fits()
    seen = tab.run(
        '[...document.querySelectorAll("#chat :is(a, button, summary, textarea, .switch)")]'
        '.filter(x => x.offsetParent && !x.closest("#turns"))'
        '.map(x => [x.id || x.className, x.getBoundingClientRect()])'
        '.map(([name, box]) => [name, box.left, box.right, box.bottom, box.height])'
    )
    assert len(seen) >= 5
    for name, left, right, bottom, tall in seen:
        assert left >= 0 and right <= width and bottom <= height, name
        assert tall >= 28, name
    assert tab.run('getComputedStyle(document.querySelector("aside")).display') == (
        'none' if width == 360 else 'block'
    )
    assert base64.b64decode(tab.picture()).startswith(b'\x89PNG')


def test_the_files_load_nothing_from_elsewhere_and_set_no_markup():
    texts = {name: files.read(name)[1].decode() for name in files.NAMES}
    assert not re.search(
        r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|Function\(',
        texts['chat.js'],
    )
    for name, text in texts.items():
        assert not re.search(r'https?:|//[a-z]+\.|@import|url\(', text), name
    page = texts['index.html']
    assert not re.search(r'\s(on\w+|style)=|<style', page)
    assert re.findall(r'(?:src|href)="([^"#]+)"', page) == ['chat.css', 'chat.js']
    with contextlib.suppress(KeyError):
        files.read('../files.py')
        raise AssertionError('a file of no page was read')

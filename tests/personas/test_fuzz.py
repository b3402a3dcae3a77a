"""Whatever is handed in, it is read or refused in one line, and soon."""

import json
import pathlib
import struct
import time
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.base import errors
from ppjax.personas import cards, evaluation_set, prompts, sources

# Processor time, which other programs on the machine do not lengthen.
_SECONDS = 2.0

_FIELDS = [
    'alternate_greetings', 'character_book', 'constant', 'content', 'data',
    'description', 'enabled', 'entries', 'eval_prompt', 'first_mes',
    'group_only_greetings', 'insertion_order', 'instruction', 'mes_example', 'name',
    'nickname', 'persona', 'persona_description', 'personality', 'pos', 'position',
    'questions', 'scenario', 'spec', 'spec_version', 'system_prompt', 'user_id',
]  # fmt: skip
_PIECES = [
    '{{', '}}', '{{char}}', '{{user}}', '{{random:', '{{original}}', '<START>', '<BOT>',
    '{{char}}:', '@@activate\n', '@@@x', '\n', ' ', 'Ida', 'ö', 'Ã¶', '\ud800', '\0',
    'chara_card_v3', 'lorebook_v3', '\u2028', '{', '"', ',', ':', '\r',
]  # fmt: skip

_text = st.lists(st.sampled_from(_PIECES) | st.characters(), max_size=6).map(''.join)
_leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -1])
    | _text
)
_json = st.recursive(
    _leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_FIELDS) | _text, inner, max_size=4)
    ),
    max_leaves=10,
)
_SET = {
    'instruction': [{'pos': prompts.persona_prompt('Ida bakes.'), 'neg': ''}],
    'eval_prompt': prompts.judge_template('Ida bakes.'),
    'questions': ['Why?'],
}


def _fuzz(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def _check(read: Any, what: Any) -> None:
    """Reads; anything but a persona or one line of refusal fails."""
    start = time.process_time()
    notes: list[str] = []
    try:
        for persona in read(what, notes.append):
            assert persona.text.strip()
            for sample in persona.voice_samples:
                assert sample.strip()
                sample.encode()
            persona.name.encode()
    except errors.InputError as error:
        assert str(error).strip()
        assert str(error).splitlines() == [str(error)]
        str(error).encode()
    for note in notes:
        assert note.splitlines() == [note]
    assert time.process_time() - start < _SECONDS


def _file(spec: str, notes: Any) -> Any:
    return sources.read_personas(spec, notes=notes, with_scenario=True)


def _card(value: Any, notes: Any) -> Any:
    return [cards.to_persona(value, 'card', notes=notes, with_scenario=True)]


def _set(value: Any, notes: Any) -> Any:
    return [evaluation_set.from_json(value, 'set', notes).persona]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp('fuzz')


def _mutated(value: Any, draw: st.DrawFn) -> Any:
    """A copy with some values replaced, removed or added anywhere."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                place = inner
                continue
            what = draw(st.sampled_from(['replace', 'replace', 'remove', 'add']))
            if what == 'remove':
                del place[key]
            elif what == 'replace':
                place[key] = draw(_json)
            elif isinstance(place, dict):
                place[draw(st.sampled_from(_FIELDS))] = draw(_json)
            break
    return value


@_fuzz(350)
@hypothesis.given(data=st.data())
def test_mutated_cards(full_card, data):
    _check(_card, _mutated(full_card, data.draw))


@_fuzz(100)
@hypothesis.given(value=_json)
def test_any_json_as_card_and_set(value):
    _check(_card, value)
    _check(_set, value)


@_fuzz(150)
@hypothesis.given(data=st.data())
def test_mutated_sets(data):
    _check(_set, _mutated(_SET, data.draw))


@_fuzz(300)
@hypothesis.given(
    lines=st.lists(
        _json.map(lambda value: json.dumps(value).encode())
        | st.sampled_from([b'"Ida bakes."', b'', b'\xef\xbb\xbf', b'{"persona": "x"}'])
        | st.binary(max_size=12),
        max_size=4,
    ),
    ending=st.sampled_from(['.json', '.jsonl', '.txt', '', '.png', '.charx']),
    line_end=st.sampled_from([b'\n', b'\r\n', b'\r']),
)
def test_any_file(folder, lines, ending, line_end):
    path = folder / f'any{ending}'
    path.write_bytes(line_end.join(lines))
    _check(_file, str(path))


@_fuzz(150)
@hypothesis.given(spec=_text)
def test_any_literal(spec):
    # A short text may name a folder that exists, which is refused as well.
    _check(_file, spec)


@st.composite
def _png_damage(draw: st.DrawFn) -> Any:
    """How to spoil a PNG: a function of its bytes."""
    kind = draw(st.sampled_from(['cut', 'flip', 'length', 'insert', 'swap']))
    where, amount = draw(st.floats(0, 1)), draw(st.integers(0, 2**32 - 1))
    junk = draw(st.binary(max_size=8))

    def spoil(data: bytes) -> bytes:
        if not data:
            return junk
        at = int(where * (len(data) - 1))
        if kind == 'cut':
            return data[:at]
        if kind == 'flip':
            return data[:at] + bytes([data[at] ^ (amount % 255 + 1)]) + data[at + 1 :]
        if kind == 'insert':
            return data[:at] + junk + data[at:]
        if kind == 'swap':
            return data[:at] + junk + data[at + len(junk) :]
        # The length of some chunk.
        starts = [8]
        while starts[-1] + 12 < len(data):
            (length,) = struct.unpack('>I', data[starts[-1] : starts[-1] + 4])
            starts.append(starts[-1] + 12 + length)
        at = starts[int(where * (len(starts) - 1))]
        return data[:at] + struct.pack('>I', amount) + data[at + 4 :]

    return spoil


@_fuzz(450)
@hypothesis.given(
    kind=st.sampled_from(['tEXt', 'zTXt', 'iTXt', 'iTXt-packed']),
    keyword=st.sampled_from(['chara', 'ccv3']),
    damages=st.lists(_png_damage(), min_size=1, max_size=2),
    both=st.booleans(),
)
def test_damaged_pngs(folder, card_bytes, kind, keyword, damages, both):
    card = {'name': 'Ida', 'description': 'Ida röstet.', 'first_mes': 'Hi {{user}}'}
    chunks = [card_bytes.text_chunk(card_bytes.payload(card), keyword, kind)]
    if both:
        chunks.append(card_bytes.text_chunk(card_bytes.payload(card), 'chara'))
    data = card_bytes.png(*chunks)
    for damage in damages:
        data = damage(data)
    path = folder / 'any.png'
    path.write_bytes(data)
    _check(_file, str(path))


@_fuzz(100)
@hypothesis.given(
    payload=st.binary(max_size=40) | _json.map(lambda v: json.dumps(v).encode()),
    kind=st.sampled_from(['tEXt', 'zTXt', 'iTXt', 'iTXt-packed', 'raw zTXt']),
)
def test_any_text_chunk(folder, card_bytes, payload, kind):
    if kind == 'raw zTXt':
        chunk = card_bytes.chunk(b'zTXt', b'chara\0' + payload)
    else:
        chunk = card_bytes.text_chunk(payload, 'ccv3', kind)
    path = folder / 'chunk.png'
    path.write_bytes(card_bytes.png(chunk))
    _check(_file, str(path))


@_fuzz(200)
@hypothesis.given(
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.none() | st.floats(0, 1),
)
def test_damaged_charx(folder, card_bytes, changes, cut):
    body = json.dumps({'name': 'Ida', 'description': 'Ida bakes.' * 9, 'first_mes': ''})
    data = bytearray(card_bytes.charx({'card.json': body.encode(), 'a/b.png': b'x'}))
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    path = folder / 'any.charx'
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    _check(_file, str(path))


# --- Shapes that invite quadratic time ------------------------------------------

_BIG = 100_000


@pytest.mark.parametrize(
    'card',
    [
        {'description': '{{' * _BIG, 'name': 'x'},
        {'description': '{{a' * _BIG + '}}' * _BIG, 'name': 'x'},
        {'description': '{{random:' * 9 + 'a,' * _BIG + '}}' * 9, 'name': 'x'},
        {'description': 'Ã¶' * _BIG + '日', 'name': 'x'},
        {'description': '\r' * _BIG + 'x', 'name': 'x' * _BIG},
        {'description': 'x', 'mes_example': ' ' * _BIG + '\n\t' * _BIG, 'name': 'a'},
        {'description': 'x', 'mes_example': 'a:\n' * (_BIG // 4), 'name': 'a'},
        {'description': 'x', 'mes_example': '<START>' * (_BIG // 4), 'name': 'a'},
        {'description': 'x', 'alternate_greetings': ['a'] * _BIG, 'name': 'a'},
        {
            'description': 'x',
            'name': 'a',
            'character_book': {
                'entries': [{'constant': True, 'content': '@@a\n' * _BIG + 'end'}]
            },
        },
    ],
    ids=range(10),
)
def test_large_cards_take_no_longer_than_their_size(card):
    _check(_card, card)

"""Character cards that carry a mask: written back whole, read by others, refused."""

import base64
import copy
import io
import json
import zipfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import PIL.Image
import pytest

from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.personas import card_files, card_output, sources
from tests.personas.conftest import CardFiles

# Of every V3 card, whatever it was made from (card specification V3).
_V3 = {
    **dict.fromkeys(
        (
            *('name', 'description', 'creator', 'character_version', 'mes_example'),
            *('system_prompt', 'post_history_instructions', 'first_mes'),
            *('personality', 'scenario', 'creator_notes'),
        ),
        str,
    ),
    **dict.fromkeys(('tags', 'alternate_greetings', 'group_only_greetings'), list),
    'extensions': dict,
}


@pytest.fixture
def mask():
    rng = np.random.default_rng(0)
    kept = np.argsort(rng.random((2, 40)), axis=1) < 20
    return pmask.PersonaMask(
        mask=kept,
        base_model='tiny',
        base_fingerprint='f' * 64,
        persona_sha256='0' * 64,
        system_prompt='You are Quill, for 5 €.',
        gains=rng.normal(1, 0.1, (2, 20)).astype(np.float16),
    )


@pytest.fixture
def card():
    """A V3 card with extensions of others and fields that nobody specified."""
    return {
        'spec': 'chara_card_v3',
        'spec_version': '3.0',
        'unknown': [1, {'a': None}],
        'data': {
            'name': 'Marta Quill',
            'description': 'Mends nets for 5 €. \U0001f9f5',
            'first_mes': 'Mind the twine.',
            'group_only_greetings': [],
            'extensions': {'depth_prompt': {'depth': 4, 'prompt': 'x'}, 'risu': 0.1},
            'odd': {'keep': True},
        },
    }


def _same_mask(found, wanted):
    assert pmask.to_bytes(found) == pmask.to_bytes(wanted)


def _without(value):
    value = copy.deepcopy(value)
    own = value['data']['extensions'].pop('ppjax')
    return value, own


def test_a_json_card_comes_back_with_all_that_it_had(tmp_path, card, mask):
    source, target = tmp_path / 'card.json', tmp_path / 'out.json'
    source.write_text(json.dumps(card))
    card_output.write(source, target, pmask.in_card(mask))
    rest, own = _without(json.loads(target.read_text('utf-8')))
    assert rest == card
    assert (own['k'], own['d_ff'], own['layers']) == (20, 40, 2)
    assert own['persona_prompt'] == mask.system_prompt
    _same_mask(pmask.load(target), mask)
    # Written again, with another mask, it holds that one alone.
    other = pmask.PersonaMask(**{**vars(mask), 'mask': ~mask.mask, 'gains': None})
    card_output.write(target, source, pmask.in_card(other))
    _same_mask(pmask.load(source), other)
    assert _without(json.loads(source.read_text('utf-8')))[0] == card


@pytest.mark.parametrize('had', ['chara', 'ccv3', 'both'])
def test_a_png_has_both_chunks_and_its_picture(tmp_path, card, mask, had):
    old = card | {'spec': 'chara_card_v2', 'spec_version': '2.0'}
    chunks = {'chara': old, 'ccv3': card}
    own = {k: x for k, x in chunks.items() if had in (k, 'both')}
    comment = CardFiles.text_chunk(b'by hand', 'Comment')
    data = CardFiles.png(
        comment,
        *(CardFiles.text_chunk(CardFiles.payload(x), k) for k, x in own.items()),
    )
    source, target = tmp_path / 'card.png', tmp_path / 'out.png'
    source.write_bytes(data)
    card_output.write(source, target, pmask.in_card(mask))
    # Pillow knows nothing of us.
    with PIL.Image.open(target) as image:
        image.load()
        texts = dict(image.text)
        pixels = image.tobytes()
    with PIL.Image.open(source) as image:
        assert image.tobytes() == pixels
    assert texts['Comment'] == 'by hand'
    for name, spec in (('chara', 'chara_card_v2'), ('ccv3', 'chara_card_v3')):
        value = json.loads(base64.b64decode(texts[name]))
        assert value['spec'] == spec
        rest, _ = _without(value)
        if name in own:
            assert rest == own[name]
        assert rest['data']['odd'] == {'keep': True}
        assert rest['unknown'] == card['unknown']
    v3 = json.loads(base64.b64decode(texts['ccv3']))
    if 'ccv3' not in own:
        assert {k: type(v3['data'][k]) for k in _V3} == _V3
    kept = [(c.kind, bytes(c.data), c.stored_crc) for c in card_files.chunks(data, 'x')]
    made = [
        (c.kind, bytes(c.data), c.stored_crc)
        for c in card_files.chunks(target.read_bytes(), 'x')
    ]
    of_cards = (b'chara\0', b'ccv3\0')
    for both in (kept, made):
        both[:] = [x for x in both if not x[1].startswith(of_cards)]
    assert kept == made
    _same_mask(pmask.load(target), mask)
    assert [p.name for p in sources.read_personas(str(target))] == ['Marta Quill']


@pytest.mark.parametrize('before', [b'', b'\xff\xd8\xff\xe0\0\x10JFIF a picture'])
def test_a_charx_file_keeps_its_entries(tmp_path, card, mask, before):
    entries = {
        'assets/icon/images/main.png': bytes(range(256)),
        'card.json': json.dumps(card).encode(),
    }
    source, target = tmp_path / 'card.charx', tmp_path / 'out.charx'
    source.write_bytes(before + CardFiles.charx(entries))
    for _ in range(2):  # Written again there is one asset still.
        card_output.write(source, target, pmask.in_card(mask))
        with zipfile.ZipFile(target) as archive:
            assert archive.testzip() is None
            names = [*entries, 'assets/other/ppjax.pmask']
            assert sorted(archive.namelist()) == sorted(names)
            assert archive.read(names[0]) == entries[names[0]]
            assert archive.read(names[2]) == pmask.to_bytes(mask)
            value = json.loads(archive.read('card.json'))
        assert target.read_bytes().startswith(before)
        assets = value['data'].pop('assets')
        assert assets == [
            {
                'type': 'x_ppjax',
                'uri': 'embeded://assets/other/ppjax.pmask',
                'name': 'ppjax',
                'ext': 'pmask',
            }
        ]
        assert _without(value)[0] == card
        _same_mask(pmask.load(target), mask)
        source.write_bytes(target.read_bytes())


def test_a_card_of_v1_gets_the_data_of_v2(tmp_path, mask):
    first = {'name': 'Ida', 'description': 'Bakes.', 'first_mes': 'Hi.', 'mood': 3}
    source, target = tmp_path / 'card.json', tmp_path / 'out.json'
    source.write_text(json.dumps(first))
    card_output.write(source, target, pmask.in_card(mask))
    found = json.loads(target.read_text())
    assert {k: found[k] for k in first} == first
    assert found['spec'] == 'chara_card_v2'
    assert found['data']['first_mes'] == 'Hi.'
    [persona] = sources.read_personas(str(target))
    assert persona.text == 'Bakes.'
    _same_mask(pmask.load(target), mask)


def test_a_new_card_is_a_whole_one(tmp_path, mask):
    target = tmp_path / 'new.json'
    card_output.write_new(
        card_output.new_card('Ida', 'Bakes “bread”.'), target, pmask.in_card(mask)
    )
    data = json.loads(target.read_text('utf-8'))['data']
    assert {k: type(data[k]) for k in _V3} == _V3
    _same_mask(pmask.load(target), mask)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['data'].pop('extensions'), 'carries no mask'),
        (lambda c: c['data']['extensions'].pop('ppjax'), 'carries no mask'),
        (lambda c: _own(c).update(mask='%%'), 'its mask is damaged'),
        (lambda c: _own(c).update(mask='AAAA'), 'no readable mask file'),
        (lambda c: _own(c).update(version=9), 'later ppjax'),
    ],
)
def test_cards_without_a_usable_mask_are_refused(tmp_path, card, mask, change, message):
    target = tmp_path / 'card.json'
    value = card_output.extended(card, 'x', pmask.in_card(mask))
    change(value)
    target.write_text(json.dumps(value))
    with pytest.raises(errors.InputError, match=message):
        pmask.load(target)


def _own(card):
    return card['data']['extensions']['ppjax']


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'{"name": 1}', 'no character card'),
        (CardFiles.png(), 'carries no character card'),
        (b'GIF89a\0\0', 'GIF images are read and not written'),
        (
            b'{"data": {"description": "x", "name": "y", "extensions": 5}}',
            '"extensions"',
        ),
    ],
)
def test_what_cannot_be_written_back_is_refused(tmp_path, mask, data, message):
    source, target = tmp_path / 'card', tmp_path / 'out'
    source.write_bytes(data)
    with pytest.raises(errors.InputError, match=message):
        card_output.write(source, target, pmask.in_card(mask))
    assert not target.exists()


def test_a_card_over_its_size_cap_is_refused(tmp_path, card, mask, monkeypatch):
    monkeypatch.setattr(card_files, 'MAX_CARD_BYTES', 900)
    source = tmp_path / 'card.json'
    source.write_text(json.dumps(card))
    with pytest.raises(errors.InputError, match='more than'):
        card_output.write(source, tmp_path / 'out.json', pmask.in_card(mask))
    assert not (tmp_path / 'out.json').exists()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@hypothesis.settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    fields=st.dictionaries(st.sampled_from([*_V3, 'character_book', 'x']), _json),
    outside=st.dictionaries(st.sampled_from(['name', 'y', 'spec_version']), _json),
    kind=st.sampled_from(['json', 'png', 'charx']),
)
def test_any_card_comes_back_the_same_or_is_refused(
    tmp_path, mask, fields, outside, kind
):
    value = {'spec': 'chara_card_v3', 'data': fields} | outside
    text = json.dumps(value).encode()
    payload = base64.b64encode(text)
    data = {
        'json': text,
        'png': CardFiles.png(CardFiles.text_chunk(payload, 'ccv3')),
        'charx': CardFiles.charx({'card.json': text}),
    }[kind]
    source, target = tmp_path / f'a.{kind}', tmp_path / f'b.{kind}'
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    try:
        card_output.write(source, target, pmask.in_card(mask))
    except errors.InputError as error:
        assert 'extensions' in str(error)
        assert not isinstance(fields.get('extensions', None), dict | None)
        assert not target.exists()
        return
    found = card_output.read(target)
    assert pmask.to_bytes(pmask.load(target)) == pmask.to_bytes(mask)
    own = found['data'].pop('assets', None)
    assert (own is not None) == (kind == 'charx')
    rest, _ = _without(found)
    if fields.get('extensions') is None:
        assert rest['data'].pop('extensions') == {}
        value['data'] = {k: x for k, x in fields.items() if k != 'extensions'}
    assert rest == value


def test_random_bytes_behind_a_header_are_refused(tmp_path, mask):
    rng = np.random.default_rng(3)
    good = io.BytesIO(CardFiles.png(CardFiles.text_chunk(b'x'))).getvalue()
    for _ in range(50):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        source = tmp_path / 'card.png'
        source.write_bytes(data)
        with pytest.raises(errors.InputError):
            card_output.write(source, tmp_path / 'out.png', pmask.in_card(mask))

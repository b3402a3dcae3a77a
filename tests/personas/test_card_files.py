"""Containers: every way a card is stored, every way a file is damaged."""

import io
import json
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest

from ppjax.base import errors
from ppjax.personas import card_files

_CARD = {'name': 'Zoë 🚀', 'description': 'Zoë bakes “bread”.', 'first_mes': 'Hi 日本'}
_OTHER = {'name': 'Old', 'description': 'Old.', 'first_mes': ''}


def _read(path: str):
    notes: list[str] = []
    value = card_files.read_card(path, notes.append)
    assert all('\n' not in note for note in notes)
    return value, notes


def _refused(path: str, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        card_files.read_card(path)
    message = str(caught.value)
    assert '\n' not in message
    for part in (path, *parts):
        assert part in message


@pytest.mark.parametrize('kind', ['tEXt', 'zTXt', 'iTXt', 'iTXt-packed'])
@pytest.mark.parametrize('keyword', ['chara', 'ccv3', 'Chara', 'CCV3'])
def test_every_text_chunk(write, card_bytes, kind, keyword):
    chunk = card_bytes.text_chunk(card_bytes.payload(_CARD), keyword, kind)
    assert _read(write('a.png', card_bytes.png(chunk))) == (_CARD, [])


def test_pillow_writes_what_is_read(write, tmp_path, card_bytes):
    image = pytest.importorskip('PIL.Image')
    png = pytest.importorskip('PIL.PngImagePlugin')
    for add in ('add_text', 'add_itxt'):
        for packed in (False, True):
            info = png.PngInfo()
            info.add_text('Comment', 'x')
            getattr(info, add)('chara', card_bytes.payload(_CARD).decode(), zip=packed)
            path = tmp_path / f'{add}{packed}.png'
            frames = [image.new('RGB', (3, 3), colour) for colour in ('red', 'blue')]
            frames[0].save(
                path, pnginfo=info, save_all=True, append_images=frames[1:]
            )  # An APNG.
            assert b'acTL' in path.read_bytes()
            assert _read(str(path)) == (_CARD, [])


def test_v3_wins_wherever_it_stands(write, card_bytes):
    new = card_bytes.text_chunk(card_bytes.payload(_CARD), 'ccv3')
    old = card_bytes.text_chunk(card_bytes.payload(_OTHER), 'chara')
    for chunks in ((new, old), (old, new)):
        assert _read(write('a.png', card_bytes.png(*chunks))) == (_CARD, [])


def test_other_chunks_and_bytes_after_the_end_do_not_matter(write, card_bytes):
    data = card_bytes.png(
        card_bytes.text_chunk(b'!!', 'Comment'),
        card_bytes.text_chunk(b'!!', 'chara-ext-asset_:0'),
        card_bytes.chunk(b'tEXt', b'chara'),  # No NUL, so no keyword.
        card_bytes.chunk(b'eXIf', b'chara\0x', crc=1),
        card_bytes.text_chunk(card_bytes.payload(_CARD)),
        after=b'PK\x03\x04 anything',
    )
    assert _read(write('a.png', data)) == (_CARD, [])


def test_base64_in_any_dress(write, card_bytes):
    plain = card_bytes.payload(_CARD | {'x': '????>>>>ÿÿ'})
    want = _CARD | {'x': '????>>>>ÿÿ'}
    assert b'+' in plain or b'/' in plain
    lines = b'\n '.join(plain[i : i + 7] for i in range(0, len(plain), 7))
    raw = json.dumps(want).encode()
    for payload in (
        b'  ' + lines + b'\r\n',
        plain.rstrip(b'='),
        plain + b'==',
        plain.translate(bytes.maketrans(b'+/', b'-_')),
        raw,
        b' ' + json.dumps(want, indent=2).encode(),
    ):
        path = write('a.png', card_bytes.png(card_bytes.text_chunk(payload)))
        assert _read(path) == (want, [])


def test_latin_1_is_read_with_a_note(write, card_bytes):
    card = {'description': 'Zoë', 'name': 'é'}
    chunk = card_bytes.text_chunk(card_bytes.payload(card, 'latin-1'))
    value, notes = _read(write('a.png', card_bytes.png(chunk)))
    assert value == card
    assert len(notes) == 1
    assert 'Latin-1' in notes[0]


def test_a_wrong_checksum_is_told(write, card_bytes):
    payload = b'chara\0' + card_bytes.payload(_CARD)
    value, notes = _read(
        write('a.png', card_bytes.png(card_bytes.chunk(b'tEXt', payload, crc=1)))
    )
    assert value == _CARD
    assert len(notes) == 1
    assert 'checksum' in notes[0]


def test_a_damaged_v3_card_falls_back_on_the_older_copy(write, card_bytes):
    bad = card_bytes.chunk(b'tEXt', b'ccv3\0' + b'e30!', crc=1)
    good = card_bytes.text_chunk(card_bytes.payload(_OTHER), 'chara')
    value, notes = _read(write('a.png', card_bytes.png(bad, good)))
    assert value == _OTHER
    assert len(notes) == 1
    assert "'ccv3'" in notes[0]
    assert "'chara'" in notes[0]


def test_damaged_cards_in_png(write, card_bytes):
    def png(*chunks: bytes) -> str:
        return write('a.png', card_bytes.png(*chunks))

    packed = zlib.compress(card_bytes.payload(_CARD))
    _refused(png(), 'no character card')
    _refused(png(card_bytes.text_chunk(b'!!!')), 'base64')
    _refused(png(card_bytes.text_chunk(b'A')), 'base64')
    _refused(png(card_bytes.text_chunk(b'')), 'JSON')
    _refused(png(card_bytes.text_chunk(b'{"a"')), 'JSON')
    _refused(png(card_bytes.text_chunk(b'WzE=' * 9)), 'base64')
    _refused(png(card_bytes.chunk(b'zTXt', b'chara\0\0junk')), 'damaged')
    _refused(png(card_bytes.chunk(b'zTXt', b'chara\0\0' + packed[:-9])), 'cut short')
    _refused(png(card_bytes.chunk(b'zTXt', b'chara\0')), 'cut short')
    _refused(png(card_bytes.chunk(b'iTXt', b'chara\0\0\0en')), 'iTXt')
    _refused(png(card_bytes.chunk(b'iTXt', b'chara\0')), 'iTXt')
    deep = card_bytes.text_chunk(b'{"a":' * 100_000)
    _refused(png(deep), 'nested too deep')


def test_a_file_cut_anywhere_is_refused(write, card_bytes):
    data = card_bytes.png(card_bytes.text_chunk(card_bytes.payload(_CARD)))
    for length in range(8, len(data)):
        _refused(write('a.png', data[:length]), 'cut short')


def test_other_images_are_refused(write):
    for name, data in {
        'WebP': b'RIFF\x10\0\0\0WEBPVP8 \0\0\0\0',
        'JPEG': b'\xff\xd8\xff\xe0\0\x10JFIF\0',
        'GIF': b'GIF89a\1\0\1\0',
    }.items():
        _refused(write('a.png', data), name, 'convert')
    _refused(write('a.png', b'plain text'), 'no PNG')
    assert card_files.container_of(b'GIF8 is how she signs, BM too') is None


def test_charx(write, card_bytes):
    card = json.dumps(_CARD).encode()
    assets = {'assets/icon/images/main.png': b'x', 'module.risum': b'y'}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write('a.charx', card_bytes.charx(assets | {'card.json': card}, method))
        assert _read(path) == (_CARD, [])
    path = write('b', card_bytes.charx({'card.json': b'\xef\xbb\xbf' + card}))
    assert _read(path) == (_CARD, [])


@pytest.mark.parametrize('name', ['./card.json', 'Card.JSON', 'Ida/card.json'])
def test_charx_of_other_programs(write, card_bytes, name):
    packed = card_bytes.charx(
        {'a/b/card.json': b'{}', name: json.dumps(_CARD).encode()}
    )
    picture = b'\xff\xd8\xff\xe0\0\x10JFIF\0 \xff\xd9'
    for path, data in {
        'a.charx': packed,
        'a.jpg': picture + packed,
        'a.png': card_bytes.png(after=packed),
    }.items():
        assert _read(write(path, data)) == (_CARD, [])


def _webp(comment: bytes) -> bytes:
    exif = b'II*\0' + struct.pack('<IHHHIII', 8, 1, 0x8769, 4, 1, 26, 0)
    exif += struct.pack('<HHHIII', 1, 0x9286, 7, len(comment), 44, 0) + comment
    assert exif[44:] == comment
    chunk = b'EXIF' + struct.pack('<I', len(exif)) + exif + b'\0' * (len(exif) % 2)
    body = b'WEBP' + b'VP8X' + struct.pack('<I', 3) + b'abc\0' + chunk
    return b'RIFF' + struct.pack('<I', len(body)) + body


def test_webp(write):
    text = json.dumps(_CARD, ensure_ascii=False)
    for comment in (
        b'ASCII\0\0\0' + text.encode(),
        b'UNICODE\0' + text.encode('utf-16-le'),
        b'\0' * 8 + ','.join(map(str, text.encode())).encode(),
    ):
        data = _webp(comment)
        assert _read(write('a.webp', data)) == (_CARD, [])
    for length in range(16, len(data), 7):
        _refused(write('a.webp', data[:length]))
    _refused(write('a.webp', _webp(b'ASCII\0\0\0!!')), 'base64')


def test_of_several_chunks_the_last_is_read_with_a_note(write, card_bytes):
    chunks = [
        card_bytes.text_chunk(card_bytes.payload(card)) for card in (_OTHER, _CARD)
    ]
    card, notes = _read(write('a.png', card_bytes.png(*chunks)))
    assert card == _CARD
    assert len(notes) == 1
    assert "several 'chara' cards" in notes[0]


def test_damaged_charx(write, card_bytes):
    card = json.dumps(_CARD).encode()
    whole = card_bytes.charx({'card.json': card})
    deep = card_bytes.charx({'x/y/card.json': card})
    _refused(write('a.charx', deep), 'card.json')
    two = card_bytes.charx({'x/card.json': card, 'y/Card.json': card})
    _refused(write('a.charx', two), '2 files called card.json')
    _refused(write('a.charx', card_bytes.charx({})), 'card.json')
    _refused(write('a.charx', card_bytes.charx({'card.json': b'{'})), 'JSON')
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = card_bytes.charx({'card.json': card}, method)
        _refused(write('a.charx', packed), 'packed')
    for length in range(4, len(whole)):
        _refused(write('a.charx', whole[:length]), 'damaged')
    flipped = bytearray(whole)
    flipped[len(b'PK') + 40] ^= 0xFF
    _refused(write('a.charx', bytes(flipped)), 'damaged')
    # The flag of encryption, in the entry and in the table of contents.
    locked = bytearray(whole)
    locked[6] |= 1
    locked[whole.index(b'PK\x01\x02') + 8] |= 1
    _refused(write('a.charx', bytes(locked)), 'encrypted')


def _bomb() -> bytes:
    """100 MiB of zeros, packed."""
    packer = zlib.compressobj(9)
    piece = bytes(2**20)
    return b''.join(packer.compress(piece) for _ in range(100)) + packer.flush()


@pytest.mark.parametrize('container', ['zTXt', 'iTXt', 'CHARX', 'CHARX that lies'])
def test_bombs_are_refused_before_they_go_off(write, card_bytes, container):
    if container.startswith('CHARX'):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('card.json', bytes(100 * 2**20))
        data = buffer.getvalue()
        if 'lies' in container:
            data = data.replace((100 * 2**20).to_bytes(4, 'little'), b'\x10\0\0\0')
    else:
        head = b'\0' if container == 'zTXt' else b'\1\0\0\0'
        kind = container.encode()
        data = card_bytes.png(card_bytes.chunk(kind, b'chara\0' + head + _bomb()))
    assert len(data) < 2**20
    path = write('bomb', data)
    tracemalloc.start()
    start = time.process_time()
    try:
        _refused(path, 'damaged' if 'lies' in container else 'more than 16 MiB')
        spent = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20
    assert spent < 3


def test_chunks_beyond_any_card_are_refused(write, card_bytes):
    data = card_bytes.png(card_bytes.chunk(b'tEXt', b'chara\0' + bytes(17 * 2**20)))
    _refused(write('a.png', data), 'more than 16 MiB')

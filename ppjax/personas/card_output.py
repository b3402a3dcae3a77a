"""Character cards written back with something added, and all else as it was.

What is added stands under a key of `data.extensions`, which the specifications have
programs keep. A PNG gets the card in both of its text chunks, and its picture is not
touched; a CHARX file keeps its other entries and whatever picture is before them. A card
of V1 gets the `data` of V2 beside its fields.

Source: the card specifications V2 and V3; PNG specification, section 5.3.
"""

import base64
from collections.abc import Mapping
import copy
import dataclasses
import io
import json
import pathlib
import struct
from typing import Any
import zipfile
import zlib

from ppjax.base import atomic, errors, reading
from ppjax.personas import card_files, cards, inputs

_TEXTS = (
    *('name', 'description', 'personality', 'scenario', 'first_mes', 'mes_example'),
    *('creator_notes', 'system_prompt', 'post_history_instructions', 'creator'),
    'character_version',
)
_LISTS = ('alternate_greetings', 'tags')
_V1 = _TEXTS[:6]
_SPECS = {'chara': ('chara_card_v2', '2.0'), 'ccv3': ('chara_card_v3', '3.0')}
_TEXT_CHUNKS = (b'tEXt', b'zTXt', b'iTXt')


@dataclasses.dataclass(frozen=True)
class Addition:
    """What a card is given.

    Attributes:
        key: under `data.extensions`.
        content: a JSON value.
        asset: of a CHARX file, a file as well: its name without folders.
        asset_data: that file's content.
    """

    key: str
    content: Mapping[str, Any]
    asset: str
    asset_data: bytes


def extension(value: Any, key: str) -> Any:
    """What stands under a key of a card's `data.extensions`; None if nothing does."""
    data = value.get('data') if isinstance(value, dict) else None
    extensions = data.get('extensions') if isinstance(data, dict) else None
    return extensions.get(key) if isinstance(extensions, dict) else None


def new_card(name: str, description: str) -> dict[str, Any]:
    """A card of V3 with nothing but a name and a description."""
    return _of_spec({'data': {'name': name, 'description': description}}, 'ccv3')


def read(path: str | pathlib.Path) -> Any:
    """The JSON value of a card that can be written back.

    Raises:
        InputError: if it is none: damaged, of another kind, or in an image that cards
            are only read from.
    """
    where, container = inputs.shown(path), _container(path)
    if container == 'JSON':
        value = inputs.parse_json(reading.read_bytes(path, 'Character card'), where)
    else:
        value = card_files.read_card(path)
    if not cards.is_card(value) or not isinstance(value, dict):
        raise errors.InputError(f'{where}: no character card.')
    return value


def _container(path: str | pathlib.Path) -> str:
    where = inputs.shown(path)
    head = reading.read_bytes(path, 'Character card', card_files.HEAD_BYTES)
    found = card_files.container_of(head)
    if found in ('PNG', 'JPEG') and zipfile.is_zipfile(path):
        # A picture before a CHARX file, unless the PNG has a card of its own.
        data = reading.read_bytes(path, 'Character card')
        if found == 'JPEG' or not card_files.png_cards(data, where):
            return 'CHARX'
    if found is None:
        return 'JSON'
    if found not in ('PNG', 'CHARX'):
        raise errors.InputError(
            f'{where}: cards in {found} images are read and not written; convert it to '
            'a PNG or JSON card with the program it comes from.'
        )
    return found


def write(
    source: str | pathlib.Path, target: str | pathlib.Path, added: Addition
) -> None:
    """Writes a card with an addition, in one piece.

    Args:
        source: the card: PNG, JSON or CHARX.
        target: the new file, of the same kind.
        added: what it gets.

    Raises:
        InputError: if the source is no such card, its extensions are no object, the
            card would be larger than `card_files.MAX_CARD_BYTES`, or the disk is full.
    """
    container = _container(source)
    where = inputs.shown(source)
    if container == 'PNG':
        data = reading.read_bytes(source, 'Character card')
        content = _png(data, where, added)
    elif container == 'CHARX':
        content = _charx(reading.read_bytes(source, 'Character card'), where, added)
    else:
        content = _dumped(extended(read(source), where, added), where)
    with atomic.file(target) as temporary:
        temporary.write_bytes(content)


def write_new(
    card: Mapping[str, Any], target: str | pathlib.Path, added: Addition
) -> None:
    """Writes a card made here as JSON; see `write`."""
    where = inputs.shown(target)
    atomic.write_text(
        target, _dumped(extended(dict(card), where, added), where).decode()
    )


def extended(value: dict[str, Any], where: str, added: Addition) -> dict[str, Any]:
    """A copy of a card with an addition.

    Raises:
        InputError: if its `data` or `extensions` is no object.
    """
    found = copy.deepcopy(value)
    if 'data' not in found:
        found = _of_spec(found, 'chara')
    data = found['data']
    if not isinstance(data, dict):
        raise errors.InputError(f'{where}: "data" of the card is no object.')
    if data.get('extensions') is None:
        data['extensions'] = {}
    if not isinstance(data['extensions'], dict):
        raise errors.InputError(
            f'{where}: "extensions" of the card is no object, so nothing can be added; '
            'save it again with the program it comes from.'
        )
    data['extensions'][added.key] = dict(added.content)
    return found


def _of_spec(value: Mapping[str, Any], chunk: str) -> dict[str, Any]:
    """A card as its chunk has it: V2 or V3, with the fields that these ask for."""
    found = dict(value)
    if not isinstance(found.get('data'), dict):
        found['data'] = {name: found[name] for name in _V1 if name in found}
    data = dict(found['data'])
    for name in _TEXTS:
        data.setdefault(name, '')
    for name in _LISTS:
        data.setdefault(name, [])
    data.setdefault('extensions', {})
    if chunk == 'ccv3':
        data.setdefault('group_only_greetings', [])
    found['spec'], found['spec_version'] = _SPECS[chunk]
    return found | {'data': data}


def _dumped(value: Any, where: str) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode('utf-8', 'surrogatepass')
    try:
        text.decode('utf-8')
    except UnicodeDecodeError:  # Halves of surrogate pairs, which JSON can spell.
        text = json.dumps(value).encode()
    if len(text) > card_files.MAX_CARD_BYTES:
        raise errors.InputError(
            f'{where}: with what is added the card would take more than '
            f'{card_files.MAX_CARD_BYTES // 2**20} MiB, and could not be read again.'
        )
    return text


def _png(data: bytes, where: str, added: Addition) -> bytes:
    """The picture's chunks as they are, but for those of cards."""
    values = card_files.png_cards(data, where)
    if not values:
        # Says what is wrong.
        card_files.read_png(data, where)
    made = bytearray(data[: len(card_files.PNG)])
    for chunk in card_files.chunks(data, where):
        if chunk.kind in _TEXT_CHUNKS and card_files.keyword(chunk) in _SPECS:
            continue
        if chunk.kind == b'IEND':
            for name in ('chara', 'ccv3'):
                own = values.get(name)
                other = next(iter(values.values()))
                card = own if own is not None else _of_spec(other, name)
                text = _dumped(extended(card, where, added), where)
                made += _chunk(b'tEXt', name.encode() + b'\0' + base64.b64encode(text))
        made += struct.pack('>I', len(chunk.data)) + chunk.kind + chunk.data
        made += struct.pack('>I', chunk.stored_crc)
    return bytes(made)


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)


def _charx(data: bytes, where: str, added: Addition) -> bytes:
    """Its entries as they are, but for card.json, with the asset beside them."""
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            entry = card_files.card_entry(old.infolist(), where)
            # Before anything is unpacked: its size is checked there.
            value = card_files.charx_card(old, where)
            if not cards.is_card(value):
                raise errors.InputError(f'{where}: card.json is no character card.')
            folder = entry.filename.rpartition('/')[0]
            name = f'assets/other/{added.asset}'
            path = f'{folder}/{name}' if folder else name
            card = extended(value, where, added)
            assets = card['data'].get('assets')
            kept = [
                x
                for x in (assets if isinstance(assets, list) else [])
                if not (isinstance(x, dict) and x.get('uri') == f'embeded://{name}')
            ]
            stem, _, ending = added.asset.rpartition('.')
            own = {'type': f'x_{added.key}', 'uri': f'embeded://{name}'}
            card['data']['assets'] = [*kept, own | {'name': stem, 'ext': ending}]
            start = min(info.header_offset for info in old.infolist())
            made.write(data[:start])
            with zipfile.ZipFile(made, 'a') as new:
                for info in old.infolist():
                    if info.filename == path:
                        continue
                    content = old.read(info)
                    if info is entry:
                        content = _dumped(card, where)
                    new.writestr(info, content, info.compress_type)
                new.writestr(path, added.asset_data)
    except errors.InputError:
        raise
    except Exception as error:  # A damaged zip file fails in many ways.
        reason = inputs.excerpt(str(error)) or type(error).__name__
        raise errors.InputError(
            f'{where}: the CHARX file is damaged ({reason}); get it again.'
        ) from error
    return made.getvalue()

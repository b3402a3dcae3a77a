"""The picture of a character card, without the card in it.

A PNG's texts are left out: they hold the card, its persona prompt and its mask, which
whoever sees a face need not be sent. Pictures are never decoded.
"""

import pathlib
from typing import Any
import zipfile

from ppjax.base import reading
from ppjax.personas import card_files, inputs
from ppjax.serving import members

# Larger ones are left out: all of a cast are held in memory.
MOST_BYTES = 8 * 2**20
_TEXTS = (b'tEXt', b'zTXt', b'iTXt', b'eXIf')
_KINDS = {
    b'\x89PNG\r\n\x1a\n': 'image/png',
    b'\xff\xd8\xff': 'image/jpeg',
    b'GIF87a': 'image/gif',
    b'GIF89a': 'image/gif',
}
# What an asset's address begins with where it is inside the file; so spelled.
_EMBEDDED = 'embeded://'


def of_card(path: pathlib.Path, value: Any) -> members.Picture | None:
    """The picture of a card's file; None where it has none that can be shown.

    Args:
        path: of the card.
        value: its JSON value.

    Raises:
        InputError: if it cannot be read.
    """
    head = reading.read_bytes(path, 'Character card', card_files.HEAD_BYTES)
    container = card_files.container_of(head)
    if container == 'PNG':
        data = reading.read_bytes(path, 'Character card')
        # There may be an archive behind its end, which is not copied.
        return _shown(_without_texts(data, inputs.shown(path)))
    if container in ('CHARX', 'JPEG'):
        return _of_charx(path, value)
    return None


def _shown(content: bytes) -> members.Picture | None:
    if len(content) > MOST_BYTES:
        return None
    if content[:4] == b'RIFF' and content[8:12] == b'WEBP':
        return members.Picture('image/webp', content)
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return members.Picture(kind, content)
    return None


def _without_texts(data: bytes, where: str) -> bytes:
    made = [card_files.PNG]
    for chunk in card_files.chunks(data, where):
        if chunk.kind not in _TEXTS:
            size = len(chunk.data).to_bytes(4, 'big')
            made += [size, chunk.kind, bytes(chunk.data)]
            made.append(chunk.stored_crc.to_bytes(4, 'big'))
    return b''.join(made)


def _of_charx(path: pathlib.Path, value: Any) -> members.Picture | None:
    """The card's icon, or else the picture that the archive stands behind."""
    try:
        # Only what is shown is read, however large the rest is.
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = _icons(value)
            for entry in entries:
                # Everything may lie in one folder.
                own = {entry.filename, entry.filename.partition('/')[2]}
                if own & names and (picture := _entry(archive, entry)):
                    return picture
        start = min((entry.header_offset for entry in entries), default=0)
        if 0 < start <= MOST_BYTES:
            return _shown(reading.read_bytes(path, 'Character card', start))
    except Exception:  # noqa: BLE001  A damaged zip file fails in many ways.
        return None
    return None


def _icons(value: Any) -> set[str]:
    """Where the card says that its icons are, the main one alone if it names one."""
    data = value.get('data') if isinstance(value, dict) else None
    assets = data.get('assets') if isinstance(data, dict) else None
    found: dict[str, str] = {}
    for asset in assets if isinstance(assets, list) else []:
        if not isinstance(asset, dict) or asset.get('type') != 'icon':
            continue
        uri, name = asset.get('uri'), asset.get('name')
        if isinstance(uri, str) and uri.startswith(_EMBEDDED):
            label = name if isinstance(name, str) else ''
            found.setdefault(label, uri.removeprefix(_EMBEDDED))
    return {found['main']} if 'main' in found else set(found.values())


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> members.Picture | None:
    packed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if entry.file_size > MOST_BYTES or entry.compress_type not in packed:
        return None
    with archive.open(entry) as file:
        return _shown(file.read(MOST_BYTES + 1))

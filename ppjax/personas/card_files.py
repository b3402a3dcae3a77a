"""Character cards inside PNG, APNG, WebP and CHARX files.

A PNG carries the card in a text chunk: `ccv3` (V3) or `chara` (V1 and V2), base64 of
UTF-8 JSON, in `tEXt` as the specifications say or in `zTXt` or `iTXt` as some editors
write it; of several the last counts. A WebP carries it in the user comment of its EXIF data.
CHARX is a zip file with `card.json` at its root or in its one folder, perhaps behind a
JPEG or PNG. Images are never decoded, and nothing is unpacked beyond a fixed size.

Source: PNG specification (W3C), sections 5.3 and 11.3.3; the card specifications.
"""

import base64
import binascii
from collections.abc import Iterator
import dataclasses
import pathlib
import re
import struct
from typing import Any
import zipfile
import zlib

from ppjax.base import errors, reading
from ppjax.personas import inputs

# Large lorebooks take a few megabytes.
MAX_CARD_BYTES = 16 * 2**20
# What tells kinds of files apart.
HEAD_BYTES = 64

PNG = b'\x89PNG\r\n\x1a\n'
_KEYWORDS = ('ccv3', 'chara')
_OTHER_IMAGES = {b'\xff\xd8\xff': 'JPEG', b'GIF8': 'GIF', b'BM': 'BMP'}


def container_of(data: bytes) -> str | None:
    """'PNG', 'CHARX', another image's format, or None for anything else."""
    if data.startswith(PNG):
        return 'PNG'
    if data.startswith((b'PK\x03\x04', b'PK\x05\x06')):
        return 'CHARX'
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return 'WebP'
    for signature, name in _OTHER_IMAGES.items():
        # Text may start with the letters of a signature; images hold NUL bytes.
        if data.startswith(signature) and b'\0' in data[:HEAD_BYTES]:
            return name
    return None


def read_card(path: str | pathlib.Path, notes: inputs.Notes = inputs.no_notes) -> Any:
    """The JSON value of the card in a PNG, APNG, WebP or CHARX file.

    Args:
        path: of the file.
        notes: takes one line for whatever was damaged and could still be read.

    Raises:
        InputError: if the file is damaged, holds no card, or would unpack to more
            than `MAX_CARD_BYTES`.
    """
    where = inputs.shown(path)
    container = container_of(reading.read_bytes(path, 'Character card', HEAD_BYTES))
    if container == 'PNG':
        data = reading.read_bytes(path, 'Character card')
        found = _card_chunks(data, where, notes)
        if not found and zipfile.is_zipfile(path):
            return _read_charx(path, where)
        return _read_png(found, where, notes)
    if container == 'WebP':
        return _read_webp(reading.read_bytes(path, 'Character card'), where, notes)
    if container == 'CHARX' or (container == 'JPEG' and zipfile.is_zipfile(path)):
        return _read_charx(path, where)
    if container is None:
        raise errors.InputError(f'{where}: no PNG and no CHARX file.')
    raise errors.InputError(
        f'{where}: cards in {container} images are not read; convert it to a PNG or '
        'JSON card with the program it comes from.'
    )


# --- PNG ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One chunk of a PNG.

    Attributes:
        kind: such as b'tEXt'.
        data: its content.
        stored_crc: the checksum that the file has for it.
    """

    kind: bytes
    data: memoryview
    stored_crc: int

    @property
    def intact(self) -> bool:
        """Whether the checksum is right."""
        return zlib.crc32(self.data, zlib.crc32(self.kind)) == self.stored_crc


def chunks(data: bytes, where: str) -> Iterator[Chunk]:
    """The chunks of a PNG, up to its end.

    Raises:
        InputError: if it is cut short.
    """
    view = memoryview(data)
    start = len(PNG)
    while True:
        # Length, kind, data, checksum.
        length = int.from_bytes(view[start : start + 4], 'big')
        kind = bytes(view[start + 4 : start + 8])
        end = start + 8 + length
        if end + 4 > len(data):
            raise errors.InputError(
                f'{where}: the PNG file is cut short or damaged at byte {start}; get '
                'it again.'
            )
        crc = int.from_bytes(view[end : end + 4], 'big')
        yield Chunk(kind, view[start + 8 : end], crc)
        if kind == b'IEND':
            return
        start = end + 4


def _inflate(packed: bytes, where: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_CARD_BYTES + 1)
    except zlib.error as error:
        raise errors.InputError(
            f'{where}: the compressed card is damaged ({error}).'
        ) from None
    _check_size(len(text), where)
    if not unpacker.eof:
        raise errors.InputError(f'{where}: the compressed card is cut short.')
    return text


def _check_size(size: int, where: str) -> None:
    if size > MAX_CARD_BYTES:
        raise errors.InputError(
            f'{where}: the card takes more than {MAX_CARD_BYTES // 2**20} MiB; that '
            'is no character card.'
        )


def _text_of(chunk: Chunk, where: str) -> bytes:
    """The text of a text chunk, unpacked.

    tEXt: keyword NUL text. zTXt: keyword NUL method packed. iTXt: keyword NUL packed?
    method language NUL keyword NUL text.
    """
    _check_size(len(chunk.data), where)
    _, _, rest = bytes(chunk.data).partition(b'\0')
    if chunk.kind == b'tEXt':
        return rest
    if chunk.kind == b'zTXt':
        return _inflate(rest[1:], where)
    parts = rest[2:].split(b'\0', 2)
    if len(parts) != 3:
        raise errors.InputError(f'{where}: the iTXt chunk of the card is damaged.')
    return _inflate(parts[2], where) if rest[0] else parts[2]


def _unwrap(text: bytes, where: str, notes: inputs.Notes) -> Any:
    """The JSON value of base64, or of JSON that was never wrapped."""
    text = text.strip()
    if not text.startswith(b'{'):
        text = re.sub(rb'\s', b'', text).rstrip(b'=')
        text = text.translate(bytes.maketrans(b'-_', b'+/'))
        try:
            text = base64.b64decode(text + b'=' * (-len(text) % 4), validate=True)
        except binascii.Error as error:
            raise errors.InputError(
                f'{where}: the card is no base64 text ({error}).'
            ) from None
    try:
        text.decode('utf-8')
    except UnicodeDecodeError:
        # Browsers' btoa() takes Latin-1, so some editors never encoded to UTF-8.
        text = text.decode('latin-1').encode('utf-8')
        notes(f'{where}: the card is not UTF-8; it was read as Latin-1.')
    return inputs.parse_json(text, where)


def keyword(chunk: Chunk) -> str:
    """What a text chunk is called, in lower case; '' if it has no name."""
    found, separator, _ = bytes(chunk.data[:80]).partition(b'\0')
    return found.decode('latin-1').lower() if separator else ''


def png_cards(data: bytes, where: str) -> dict[str, Any]:
    """The readable cards of a PNG by their chunks' names, the newest kind first."""
    found = {}
    chunks_found = _card_chunks(data, where, inputs.no_notes)
    for name in (name for name in _KEYWORDS if name in chunks_found):
        try:
            text = _text_of(chunks_found[name], where)
            found[name] = _unwrap(text, where, inputs.no_notes)
        except errors.InputError:
            continue
    return found


def read_png(data: bytes, where: str) -> Any:
    """The card of a PNG; see `read_card`."""
    return _read_png(_card_chunks(data, where, inputs.no_notes), where, inputs.no_notes)


def _card_chunks(data: bytes, where: str, notes: inputs.Notes) -> dict[str, Chunk]:
    """The last chunk of each keyword of cards."""
    found: dict[str, Chunk] = {}
    several: dict[str, None] = {}
    for chunk in chunks(data, where):
        if chunk.kind in (b'tEXt', b'zTXt', b'iTXt'):
            name = keyword(chunk)
            if name in _KEYWORDS:
                several |= {name: None} if name in found else {}
                found[name] = chunk
    for name in several:
        notes(f'{where}: there are several {name!r} cards; the last one was read.')
    return found


def _read_png(found: dict[str, Chunk], where: str, notes: inputs.Notes) -> Any:
    if not found:
        raise errors.InputError(
            f'{where}: this PNG carries no character card (no "chara" and no "ccv3" '
            'text); image editors and chats often remove it, so get the original.'
        )
    refused: errors.InputError | None = None
    for name in (name for name in _KEYWORDS if name in found):
        chunk = found[name]
        place = f'{where}: chunk {name!r}'
        try:
            value = _unwrap(_text_of(chunk, place), place, notes)
        except errors.InputError as error:
            refused = refused or error
            continue
        if refused is not None:
            notes(f'{refused} The card in {name!r} was read instead.')
        if not chunk.intact:
            notes(
                f'{place}: the checksum is wrong, so the card may be damaged; look at '
                'the persona text.'
            )
        return value
    assert refused is not None
    raise refused


# --- WebP ---------------------------------------------------------------------

_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286


def _read_webp(data: bytes, where: str, notes: inputs.Notes) -> Any:
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], 'little')
        if data[start : start + 4] == b'EXIF':
            comment = _user_comment(data[start + 8 : start + 8 + size])
            if comment is not None:
                _check_size(len(comment), where)
                return _unwrap(comment, where, notes)
        start += 8 + size + size % 2
    raise errors.InputError(
        f'{where}: this WebP carries no character card in its EXIF data; convert the '
        'original to a PNG or JSON card with the program it comes from.'
    )


def _user_comment(exif: bytes) -> bytes | None:
    """The text of a user comment as UTF-8; None where there is none.

    Source: EXIF 2.3, sections 4.5 and 4.6: folders of 12-byte entries (tag, kind,
    count, offset), and eight bytes that name the comment's characters.
    """
    exif = exif.removeprefix(b'Exif\0\0')
    order = '<' if exif[:2] == b'II' else '>'

    def entry(offset: int, wanted: int) -> tuple[int, int] | None:
        (entries,) = struct.unpack_from(f'{order}H', exif, offset)
        for number in range(entries):
            tag, _, count, place = struct.unpack_from(
                f'{order}HHII', exif, offset + 2 + 12 * number
            )
            if tag == wanted:
                return count, place
        return None

    try:
        folder = entry(struct.unpack_from(f'{order}I', exif, 4)[0], _EXIF_FOLDER)
        found = folder and entry(folder[1], _USER_COMMENT)
    except struct.error:
        return None
    if not found:
        return None
    count, place = found
    characters, text = exif[place : place + 8], exif[place + 8 : place + count]
    if characters.startswith(b'UNICODE'):
        encoding = 'utf-16-le' if order == '<' else 'utf-16-be'
        text = text.decode(encoding, 'replace').encode()
    text = text.strip(b'\0 ')
    # Some programs write the bytes as numbers with commas between them.
    if re.fullmatch(rb'\s*\d{1,3}\s*(,\s*\d{1,3}\s*)+', text):
        return bytes(min(255, int(number)) for number in text.split(b','))
    return text


# --- CHARX --------------------------------------------------------------------

# Others can unpack without a bound.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def card_entry(entries: list[zipfile.ZipInfo], where: str) -> zipfile.ZipInfo:
    """Where the card is: `card.json` in any case, at the root or one folder down."""
    for depth in (1, 2):
        found = []
        for entry in entries:
            parts = pathlib.PurePosixPath(entry.filename).parts
            if len(parts) == depth and parts[-1].lower() == 'card.json':
                found.append(entry)
        if len(found) == 1:
            return found[0]
        if found:
            raise errors.InputError(
                f'{where}: holds {len(found)} files called card.json; wanted one.'
            )
    raise errors.InputError(
        f'{where}: no character card; a CHARX file has card.json at its root.'
    )


def charx_card(archive: zipfile.ZipFile, where: str) -> Any:
    """The JSON value of a CHARX file's card.json.

    Raises:
        InputError: if it has none, or one that cannot be read.
    """
    entry = card_entry(archive.infolist(), where)
    if entry.flag_bits & 1:
        raise errors.InputError(
            f'{where}: card.json is encrypted; save the card without a password.'
        )
    if entry.compress_type not in _METHODS:
        raise errors.InputError(
            f'{where}: card.json is packed in an unusual way; pack it again with '
            'deflate.'
        )
    _check_size(entry.file_size, where)
    with archive.open(entry) as file:
        text = file.read(MAX_CARD_BYTES + 1)
    _check_size(len(text), where)
    return inputs.parse_json(text, f'{where}: card.json')


def _read_charx(path: str | pathlib.Path, where: str) -> Any:
    try:
        # Only its table of contents and card.json are read, however large it is.
        with zipfile.ZipFile(path) as archive:
            return charx_card(archive, where)
    except errors.InputError:
        raise
    except Exception as error:  # A damaged zip file fails in many ways.
        reason = inputs.excerpt(str(error)) or type(error).__name__
        raise errors.InputError(
            f'{where}: the CHARX file is damaged ({reason}); get it again.'
        ) from error

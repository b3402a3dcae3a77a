"""Card files, made byte by byte."""

import base64
from collections.abc import Callable
import io
import json
import pathlib
import struct
from typing import Any
import zipfile
import zlib

import pytest

_PNG = b'\x89PNG\r\n\x1a\n'


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)


class CardFiles:
    """Bytes of card files."""

    chunk = staticmethod(_chunk)

    @staticmethod
    def payload(card: Any, encoding: str = 'utf-8') -> bytes:
        """The base64 text of a card."""
        return base64.b64encode(json.dumps(card, ensure_ascii=False).encode(encoding))

    @staticmethod
    def text_chunk(payload: bytes, keyword: str = 'chara', kind: str = 'tEXt') -> bytes:
        """A text chunk; kind 'iTXt-packed' is a compressed iTXt."""
        name = keyword.encode() + b'\0'
        if kind == 'zTXt':
            return _chunk(b'zTXt', name + b'\0' + zlib.compress(payload))
        if kind == 'iTXt':
            return _chunk(b'iTXt', name + b'\0\0en\0' + b'Karte' + b'\0' + payload)
        if kind == 'iTXt-packed':
            return _chunk(b'iTXt', name + b'\1\0\0\0' + zlib.compress(payload))
        return _chunk(b'tEXt', name + payload)

    @staticmethod
    def png(*chunks: bytes, after: bytes = b'') -> bytes:
        """A one-pixel PNG with chunks between image and end."""
        header = struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0)
        return b''.join(
            [
                _PNG,
                _chunk(b'IHDR', header),
                _chunk(b'IDAT', zlib.compress(b'\0\0')),
                *chunks,
                _chunk(b'IEND', b''),
                after,
            ]
        )

    @staticmethod
    def charx(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w', method) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return buffer.getvalue()


@pytest.fixture(scope='session')
def card_bytes() -> CardFiles:
    return CardFiles()


@pytest.fixture(scope='session')
def full_card() -> dict[str, Any]:
    """A V3 card that uses every field that matters, with macros."""
    return {
        'spec': 'chara_card_v3',
        'spec_version': '3.0',
        'data': {
            'name': 'Marta Quill',
            'nickname': 'Quill',
            'description': '{{char}} mends nets by the harbour and owes {{user}} 5 €.',
            'personality': 'dry, patient',
            'scenario': '{{user}} walks into the net loft.',
            'first_mes': 'Mind the twine, {{user}}.',
            'mes_example': (
                '<START>\n{{user}}: Busy?\n{{char}}: Always.\nSit down.\n'
                '<START>\n{{user}}: Storm?\nMarta Quill: By noon.'
            ),
            'creator_notes': 'NEVER-IN-A-PROMPT notes',
            'system_prompt': '',
            'post_history_instructions': 'NEVER-IN-A-PROMPT history',
            'alternate_greetings': ['Shut the door.', ''],
            'group_only_greetings': ['All of you, mind the twine.'],
            'tags': ['NEVER-IN-A-PROMPT'],
            'creator': 'NEVER-IN-A-PROMPT',
            'character_version': 'NEVER-IN-A-PROMPT',
            'creator_notes_multilingual': {'de': 'NEVER-IN-A-PROMPT'},
            'source': ['NEVER-IN-A-PROMPT'],
            'extensions': {'NEVER-IN-A-PROMPT': 1},
            'character_book': {
                'name': 'NEVER-IN-A-PROMPT',
                'entries': [
                    {
                        'keys': ['storm'],
                        'content': 'NEVER-IN-A-PROMPT: waits for its keyword',
                        'enabled': True,
                        'insertion_order': 0,
                    },
                    {
                        'content': 'Late.',
                        'enabled': True,
                        'constant': True,
                        'insertion_order': 20,
                        'position': 'after_char',
                    },
                    {
                        'content': '@@depth 4\n@@@role system\n\nEarly, {{char}}.',
                        'enabled': True,
                        'constant': True,
                        'insertion_order': 3,
                    },
                    {
                        'content': 'First.',
                        'enabled': True,
                        'constant': True,
                        'insertion_order': 99,
                        'position': 'before_char',
                    },
                    {
                        'content': 'NEVER-IN-A-PROMPT: disabled',
                        'enabled': False,
                        'constant': True,
                        'insertion_order': 1,
                    },
                ],
            },
        },
    }


@pytest.fixture(scope='session')
def eval_set_files() -> list[pathlib.Path]:
    """The paper's evaluation sets, where they lie beside the repository."""
    folder = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'eval_sets'
    files = sorted(folder.glob('*.json'))
    if not files:
        pytest.skip("the paper's evaluation sets are not here")
    return files


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[..., str]:
    """Writes bytes, text or a JSON value, and gives the path as text."""

    def write(name: str, content: Any) -> str:
        path = tmp_path / name
        if not isinstance(content, bytes):
            if not isinstance(content, str):
                content = json.dumps(content, ensure_ascii=False)
            content = content.encode()
        path.write_bytes(content)
        return str(path)

    return write

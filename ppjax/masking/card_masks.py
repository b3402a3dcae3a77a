"""Masks inside character cards, under `data.extensions.ppjax`.

A card holds the whole mask file as base64, so that whatever a mask may have (gains,
ranks) goes along, and beside it what people and other programs want to know.
"""

import base64
import binascii
import pathlib
from typing import Any

import ppjax
from ppjax.base import errors, reading
from ppjax.personas import card_files, card_output, inputs

KEY = 'ppjax'
VERSION = 1
ASSET = 'ppjax.pmask'
# Of what a mask file never begins with.
_IMAGES = ('PNG', 'CHARX', 'WebP', 'JPEG')


def is_card(path: str | pathlib.Path) -> bool:
    """Whether a path is to be read as a card and not as a mask file."""
    if pathlib.Path(path).suffix.lower() == '.json':
        return True
    reading.require_file(path, 'Mask file')
    head = reading.read_bytes(path, 'Mask file', card_files.HEAD_BYTES)
    return card_files.container_of(head) in _IMAGES


def content(path: str | pathlib.Path) -> bytes:
    """The mask file that a card carries.

    Raises:
        InputError: if it is no card, has no mask, or one of a later version.
    """
    where = inputs.shown(path)
    found = card_output.extension(card_output.read(path), KEY)
    if not isinstance(found, dict) or not isinstance(found.get('mask'), str):
        raise errors.InputError(
            f'{where}: this card carries no mask (data.extensions.{KEY}.mask); python '
            '-m ppjax.export --card writes cards with one.'
        )
    if found.get('version') != VERSION:
        raise errors.InputError(
            f'{where}: its mask has version {found.get("version")!r}, wanted {VERSION}; '
            'it is of a later ppjax.'
        )
    try:
        return base64.b64decode(found['mask'], validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.InputError(f'{where}: its mask is damaged ({error}).') from None


def addition(
    data: bytes,
    *,
    base_model: str,
    base_fingerprint: str,
    keep: int,
    shape: tuple[int, int],
    system_prompt: str,
) -> card_output.Addition:
    """What a card gets.

    Args:
        data: the mask file.
        base_model: what the base model was called.
        base_fingerprint: of it.
        keep: k.
        shape: (L, F).
        system_prompt: the persona prompt.
    """
    layers, d_ff = shape
    entry: dict[str, Any] = {
        'version': VERSION,
        'tool_version': ppjax.__version__,
        'base_model': base_model,
        'base_fingerprint': base_fingerprint,
        'k': keep,
        'd_ff': d_ff,
        'layers': layers,
        'persona_prompt': system_prompt,
        'mask': base64.b64encode(data).decode('ascii'),
    }
    return card_output.Addition(KEY, entry, ASSET, data)

"""The data that the quickstart ships, written for this project.

`personas.jsonl` holds three characters, `instructions.jsonl` general queries with
plain answers, and `rewrites.jsonl` the same answers in a character's voice. Each
query names the one character whose train or test split it belongs to, and that
character rewrites it. The ferryman rewrites the other characters' queries as well.
"""

import functools
import importlib.resources
import json
import os
from typing import Any

from ppjax.base import errors
from ppjax.data import calibration
from ppjax.personas import prompts

SCHEME = 'demo:'


@functools.cache
def _table(name: str) -> list[dict[str, Any]]:
    text = importlib.resources.files(__name__).joinpath(name).read_text('utf-8')
    return [json.loads(line) for line in text.splitlines()]


def personas() -> dict[str, str]:
    """Name -> persona text."""
    return {row['name']: row['persona'] for row in _table('personas.jsonl')}


def persona(name: str) -> str:
    """The text of one of them.

    Raises:
        InputError: if there is no such character.
    """
    if name not in personas():
        raise errors.InputError(
            f'There is no demo persona {name!r}; there are {", ".join(personas())}.'
        )
    return personas()[name]


def instructions() -> list[tuple[str, str, str]]:
    """(query id, query, plain answer) of every query."""
    return [
        (row['query_id'], row['instruction'], row['output'])
        for row in _table('instructions.jsonl')
    ]


def rewrites(name: str) -> dict[str, str]:
    """Query id -> answer in one character's voice, from all splits.

    The ferryman has one for every query, the others for the queries of their split.

    Args:
        name: of the character.

    Raises:
        InputError: if there is no such character.
    """
    persona(name)
    return {
        row['query_id']: row['rewrite']
        for row in _table('rewrites.jsonl')
        if row['persona'] == name
    }


def rows(name: str, split: str) -> list[calibration.Row]:
    """The calibration rows of one character: the queries of their split, no others.

    Args:
        name: of the character.
        split: 'train' or 'test'.

    Raises:
        InputError: if there is no such character.
    """
    answers = rewrites(name)
    system = prompts.persona_prompt(persona(name))
    return [
        calibration.Row(
            calibration.conversation(
                system, row['instruction'], answers[row['query_id']]
            ),
            row['query_id'],
            where=f'{SCHEME}{name} {row["query_id"]}',
        )
        for row in _table('instructions.jsonl')
        if row['split'] == split and row['persona'] == name
    ]


def read_rows(source: str, *, split: str) -> list[calibration.Row]:
    """Calibration rows from files and `demo:NAME`s, with commas between them.

    Args:
        source: JSONL paths, and `demo:` with a character's name.
        split: which split `demo:` means here.

    Raises:
        InputError: see `calibration.read_rows` and `rows`.
    """
    # A file's own name may have commas; a long list is too long for a name.
    parts = [source] if os.path.isfile(source) else map(str.strip, source.split(','))
    found: list[calibration.Row] = []
    for part in parts:
        if part.startswith(SCHEME):
            found += rows(part.removeprefix(SCHEME), split)
        else:
            found += calibration.read_rows(part)
    return found

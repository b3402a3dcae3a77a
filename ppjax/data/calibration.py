"""Calibration data: JSON lines of chat messages."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from ppjax.base import errors, json_lines
from ppjax.personas import inputs

_ROLES = ('system', 'user', 'assistant')


@dataclasses.dataclass(frozen=True)
class Row:
    """One conversation whose last turn is the answer to learn from.

    Attributes:
        messages: `{"role", "content"}` dicts; the last is the assistant's.
        query_id: names the row in messages and results.
        where: file and line, for errors.
    """

    messages: tuple[dict[str, str], ...]
    query_id: str
    where: str

    @property
    def system_prompt(self) -> str:
        """The system message, or '' where there is none."""
        first = self.messages[0]
        return first['content'] if first['role'] == 'system' else ''

    @property
    def query(self) -> str:
        """The last user message."""
        return self.messages[-2]['content']

    @property
    def answer(self) -> str:
        """The assistant's last message."""
        return self.messages[-1]['content']

    def with_system_prompt(self, prompt: str) -> 'Row':
        """The same conversation after another system message."""
        own = self.messages[0]['role'] == 'system'
        rest = self.messages[1:] if own else self.messages
        messages = ({'role': 'system', 'content': prompt}, *rest)
        return dataclasses.replace(self, messages=messages)

    def shortened(self, prompt: str) -> 'Row':
        """The same conversation after a shorter system message, or, for '', none.

        One that has no system message stays as it is.
        """
        if self.messages[0]['role'] != 'system':
            return self
        if prompt:
            return self.with_system_prompt(prompt)
        return dataclasses.replace(self, messages=self.messages[1:])


def conversation(*texts: str) -> tuple[dict[str, str], ...]:
    """The messages of a persona prompt, a question and, if it is there, an answer."""
    turns = zip(_ROLES, texts, strict=False)
    return tuple({'role': role, 'content': text} for role, text in turns)


def parse_row(value: Any, where: str, default_id: str) -> Row:
    """Checks one parsed JSON value.

    Raises:
        InputError: if it is no chat that ends in a non-empty assistant turn.
    """
    messages = value.get('messages') if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise errors.InputError(
            f'{where}: no chat; wanted {{"messages": [{{"role", "content"}}, ...]}}.'
        )
    for number, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.get('role') not in _ROLES
            or not inputs.is_text(message.get('content'))
        ):
            raise errors.InputError(
                f'{where}: message {number} is not {{"role": one of '
                f'{", ".join(_ROLES)}, "content": text}}.'
            )
    if messages[-1]['role'] != 'assistant':
        raise errors.InputError(
            f'{where}: the last message is the {messages[-1]["role"]} turn; '
            'there is no assistant turn to learn from.'
        )
    if not messages[-1]['content'].strip():
        raise errors.InputError(f'{where}: the assistant turn is empty.')
    if len(messages) < 2 or messages[-2]['role'] != 'user':
        raise errors.InputError(
            f'{where}: the assistant turn does not follow a user turn.'
        )
    kept = tuple({'role': m['role'], 'content': m['content']} for m in messages)
    return Row(kept, str(value.get('query_id', default_id)), where)


def read_rows(path: str | pathlib.Path) -> list[Row]:
    """Reads a calibration file; blank lines are passed over.

    Raises:
        InputError: naming file and line of the first bad row, or an empty file.
    """
    rows = [
        parse_row(value, where, default_id=where.rpartition(':')[2])
        for where, value in json_lines.read(path, 'Calibration file')
    ]
    if not rows:
        raise errors.InputError(f'{path} holds no rows.')
    return rows


def content_hash(rows: list[Row]) -> str:
    """sha256 over the messages, in order: what a run read."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.messages, ensure_ascii=False).encode())
        digest.update(b'\n')
    return digest.hexdigest()

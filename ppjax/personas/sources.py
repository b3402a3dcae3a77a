"""Personas from whatever a user has: text, files of texts, cards, evaluation sets.

| given | read as |
|---|---|
| a text with a space or line break that names no file | the persona itself |
| `.txt`, `.md`, a file without a known ending that is no JSON | the whole file |
| `.jsonl` | a persona a line: a JSON string, `{"persona": ...}`, a card |
| `.json` | a persona, a list of them, an evaluation set, a card; or lines as above |
| PNG, APNG, WebP, CHARX, also behind a JPEG | a character card |
| `.yaml`, `.yml` | a character of text-generation-webui |

What a binary file is, its first bytes tell and not its name.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.resources
import json
import os
import pathlib
from typing import Any

import yaml

from ppjax.base import errors, reading
from ppjax.personas import card_files, cards, evaluation_set, inputs, macros
from ppjax.personas import persona as persona_lib

# The paper's personas have 144 words (Alpaca-P) and 92 (RoleBench) on average.
WORDS_AT_LEAST, WORDS_AT_MOST = 40, 400

_TEXT_ENDINGS = frozenset(['.txt', '.md'])
_LINES_ENDINGS = frozenset(['.jsonl', '.ndjson'])
_BINARY_ENDINGS = frozenset(['.png', '.apng', '.charx', '.webp', '.jpg', '.jpeg'])
_YAML_ENDINGS = frozenset(['.yaml', '.yml'])
_KNOWN_ENDINGS = (
    _TEXT_ENDINGS | _LINES_ENDINGS | _BINARY_ENDINGS | _YAML_ENDINGS | {'.json'}
)
# PyYAML reads about a megabyte in a second.
_MAX_YAML = 2**20
_TEXT_KEYS = ('persona', 'persona_description', 'input persona')
_LISTED = 8


def read_personas(
    spec: str,
    *,
    user_name: str = macros.DEFAULT_USER_NAME,
    with_scenario: bool = False,
    notes: inputs.Notes = inputs.no_notes,
) -> list[persona_lib.Persona]:
    """All personas of a text or file, at least one.

    Args:
        spec: the persona itself, or a path.
        user_name: for `{{user}}` in character cards.
        with_scenario: whether a card's scenario becomes part of its persona text.
        notes: takes one line for whatever a user should look at.

    Raises:
        InputError: naming file and line or row of the first thing that is no persona.
    """
    card = functools.partial(
        cards.to_persona, user_name=user_name, with_scenario=with_scenario, notes=notes
    )
    personas = _Reader(card, notes).read(spec)
    _note_lengths(personas, notes)
    return personas


def read_persona(
    spec: str,
    *,
    user_name: str = macros.DEFAULT_USER_NAME,
    with_scenario: bool = False,
    notes: inputs.Notes = inputs.no_notes,
) -> persona_lib.Persona:
    """The one persona of a text or file; arguments as in `read_personas`.

    Raises:
        InputError: if it is none, or as many as it then lists.
    """
    found: list[str] = []
    personas = read_personas(
        spec, user_name=user_name, with_scenario=with_scenario, notes=found.append
    )
    if len(personas) > 1:
        listed = '; '.join(
            f'({number}) {inputs.excerpt(persona.name or persona.text, 32)}'
            for number, persona in enumerate(personas[:_LISTED], start=1)
        )
        rest = len(personas) - _LISTED
        more = f'; and {rest} more' if rest > 0 else ''
        raise errors.InputError(
            f'{inputs.shown(spec)} holds {len(personas)} personas, wanted one; put it '
            f'into a file of its own: {listed}{more}.'
        )
    for note in found:
        notes(note)
    return personas[0]


def shipped_references() -> list[persona_lib.Persona]:
    """Nine people of about the paper's length, for sensitivity to compare with."""
    ours = importlib.resources.files('ppjax.personas') / 'reference_personas.jsonl'
    with importlib.resources.as_file(ours) as path:
        return read_personas(str(path))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads with one set of options.

    Attributes:
        card: makes a persona of a card's value and its place.
        notes: takes one line for whatever a user should look at.
    """

    card: Callable[[Any, str], persona_lib.Persona]
    notes: inputs.Notes

    def read(self, spec: str) -> list[persona_lib.Persona]:
        if not spec.strip():
            raise errors.InputError(
                'The persona is empty; give a text, a text file or a character card.'
            )
        if os.path.exists(home := os.path.expanduser(spec)):
            spec = home
        if not os.path.exists(spec):
            return [self._literal(spec)]
        if os.path.isdir(spec):
            raise errors.InputError(
                f'{inputs.shown(spec)} is a folder; give one file in it.'
            )
        head = reading.read_bytes(spec, 'Persona file', card_files.HEAD_BYTES)
        where = inputs.shown(spec)
        if card_files.container_of(head) is not None:
            return [self.card(card_files.read_card(spec, self.notes), where)]
        data = reading.read_bytes(spec, 'Persona file')
        ending = pathlib.Path(spec).suffix.lower()
        if ending in _LINES_ENDINGS:
            return self._lines(data, where)
        if ending in _YAML_ENDINGS:
            return [self._value(_parse_yaml(data, where), where)]
        if ending == '.json' or (
            ending not in _TEXT_ENDINGS and data.lstrip()[:1] in (b'{', b'[', b'"')
        ):
            return self._json(data, where)
        if ending in _BINARY_ENDINGS:
            raise errors.InputError(
                f'{where} is no {ending[1:].upper()} file; look at what it really is.'
            )
        return [_plain(inputs.decode(data, where), where)]

    def _literal(self, spec: str) -> persona_lib.Persona:
        one_line = '\n' not in spec.strip()
        ending = os.path.splitext(spec)[1].lower()
        if not any(c.isspace() for c in spec.strip()) or (
            one_line and ending in _KNOWN_ENDINGS
        ):
            raise errors.InputError(
                f'There is no file {inputs.excerpt(spec, 200)!r}; a persona that is '
                'not in a file is given as a text of several words.'
            )
        return _plain(inputs.unix_lines(spec), 'The persona')

    def _lines(self, data: bytes, where: str) -> list[persona_lib.Persona]:
        lines = data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
        personas = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f'{where}:{number}'
                personas.append(self._value(inputs.parse_json(line, place), place))
        if not personas:
            raise errors.InputError(f'{where} holds no personas.')
        return personas

    def _json(self, data: bytes, where: str) -> list[persona_lib.Persona]:
        # JSON lines often go by the name of .json.
        first, _, rest = data.strip().partition(b'\n')
        if rest and _is_json(first):
            return self._lines(data, where)
        value = inputs.parse_json(data, where)
        if not isinstance(value, list):
            return [self._value(value, where)]
        if not value:
            raise errors.InputError(f'{where} holds no personas.')
        return [
            self._value(item, f'{where}: item {number}')
            for number, item in enumerate(value)
        ]

    def _value(self, value: Any, where: str) -> persona_lib.Persona:
        """One persona of a JSON value."""
        if isinstance(value, str):
            return _plain(value, where)
        # An evaluation set has a persona's text as one of its fields.
        if evaluation_set.is_evaluation_set(value):
            return evaluation_set.from_json(value, where, self.notes).persona
        if isinstance(value, dict):
            for key in _TEXT_KEYS:
                if key in value:
                    return _plain(value[key], f'{where}: "{key}"', value.get('name'))
            if cards.is_card(value):
                return self.card(value, where)
        raise errors.InputError(
            f'{where}: no persona; wanted a JSON string, {{"persona": text}}, a '
            'character card or an evaluation set.'
        )


def _parse_yaml(data: bytes, where: str) -> Any:
    """A YAML value whose scalars are all text; null is left out."""
    text = inputs.decode(data, where)
    if len(text) > _MAX_YAML:
        raise errors.InputError(f'{where}: more than 1 MiB of YAML is no character.')
    try:
        # Merged keys could grow without bounds; this loader has none, nor any types.
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = ' '.join(str(error).split()) or 'nested too deep'
        raise errors.InputError(f'{where}: no YAML ({reason}).') from None
    if not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if part not in ('', 'null', '~')}


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _plain(text: Any, where: str, name: Any = None) -> persona_lib.Persona:
    """A persona that is only a text, and perhaps a name."""
    name = '' if name is None else name
    if not inputs.is_text(text) or not inputs.is_text(name):
        raise errors.InputError(
            f'{where}: the persona or its name is no text; wanted strings without '
            'halves of surrogate pairs.'
        )
    if not text.strip():
        raise errors.InputError(f'{where}: the persona is empty.')
    return persona_lib.Persona(text.strip(), name=' '.join(name.split()), source=where)


def _note_lengths(personas: list[persona_lib.Persona], notes: inputs.Notes) -> None:
    counts = [len(persona.text.split()) for persona in personas]
    odd = [
        number
        for number, count in enumerate(counts)
        if not WORDS_AT_LEAST <= count <= WORDS_AT_MOST
    ]
    if not odd:
        return
    first = personas[odd[0]]
    said = f'{first.source}: the persona has {counts[odd[0]]} words'
    if len(odd) > 1:
        said += f', and {len(odd) - 1} more are as short or long'
    notes(
        f'{said}; between {WORDS_AT_LEAST} and {WORDS_AT_MOST} suit the choice of '
        'instructions best.'
    )

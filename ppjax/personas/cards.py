"""Character cards (V1, V2 and V3) as personas.

The persona text is put together the same way every time:

    P = description
      + "{char}'s personality: " personality
      + "Scenario: " scenario                       only if asked for
      + constant enabled book entries               by insertion order, those of
                                                    before_char first

The card's `system_prompt` takes the place of Table 18's wrapper: its `{{original}}`
is the wrapper with P inside, and where it has none, P follows as its own paragraph,
because a frontend sends the description in any case. Greetings and the character's
lines in `mes_example` are voice samples. Notes of the creator, tags and the like never
come near a prompt, as the specifications demand, and book entries that wait for a
keyword are left out of P: all that have a keyword are the persona's `lorebook`, and its
`book` (see `lorebooks`) is what conversations look into. `post_history_instructions`
are kept for them too, `{{original}}` in them being nothing.

The files of Pygmalion (`char_name`, `char_persona`) and text-generation-webui (`name`,
`context`) are read as V1.

Real cards are dirty: `null` for any field, a string where a list belongs, V1's keys
beside `data`, text that was decoded with the wrong encoding, fields nobody specified.

Source: malfoyslastname/character-card-spec-v2, kwaroran/character-card-spec-v3.
"""

from collections.abc import Iterator, Mapping
import re
from typing import Any

from ppjax.base import errors
from ppjax.personas import inputs, lorebooks, macros, prompts
from ppjax.personas import persona as persona_lib

_NAMELESS = 'the character'
_START = re.compile(r'<START>', re.IGNORECASE)
# Pygmalion's JSON, and text-generation-webui's YAML, whose name was once `bot`.
_OTHER_NAMES = (
    {
        'char_name': 'name',
        'char_persona': 'description',
        'char_greeting': 'first_mes',
        'world_scenario': 'scenario',
        'example_dialogue': 'mes_example',
    },
    {
        'bot': 'name',
        'name': 'name',
        'context': 'description',
        'greeting': 'first_mes',
        'example_dialogue': 'mes_example',
    },
)
_USER_LABELS = ('user', 'you', 'human', 'anon')


def is_card(value: Any) -> bool:
    """Whether a JSON value looks like a character card."""
    if not isinstance(value, dict):
        return False
    if _spec_of(value).startswith(('chara_card', 'lorebook')):
        return True
    if _renamed(value) is not value:
        return True
    data = value.get('data')
    fields = data if isinstance(data, dict) else value
    return 'description' in fields and bool(
        {'name', 'personality', 'first_mes', 'mes_example'} & fields.keys()
    )


def to_persona(
    value: Any,
    where: str,
    *,
    user_name: str = macros.DEFAULT_USER_NAME,
    with_scenario: bool = False,
    notes: inputs.Notes = inputs.no_notes,
) -> persona_lib.Persona:
    """Reads a card.

    Args:
        value: the card's JSON value.
        where: names it in messages and in `Persona.source`.
        user_name: for `{{user}}`.
        with_scenario: whether the scenario becomes part of P. It is a situation, not
            a trait, and a model that is trained with it keeps it.
        notes: takes one line for whatever had to be guessed or was left as it is.

    Raises:
        InputError: if it is no card, a field is of a kind that cannot be text, or no
            persona text comes out.
    """
    card = _Card(value, where, user_name, notes)
    parts = [card.text('description')]
    if personality := card.text('personality'):
        parts.append(f"{card.char}'s personality: {personality}")
    if with_scenario and (scenario := card.text('scenario')):
        parts.append(f'Scenario: {scenario}')
    parts += card.constant_entries()
    text = '\n'.join(part for part in parts if part)
    if not text:
        raise errors.InputError(
            f'{where}: the card has no description and no personality, so there is no '
            'persona text; write one into its description.'
        )
    persona = persona_lib.Persona(
        text=text,
        name=card.name,
        system_template=card.system_prompt(text),
        voice_samples=tuple(dict.fromkeys(card.voice_samples())),
        source=where,
        greeting=next(card.greetings(), ''),
        lorebook=tuple(card.lorebook()),
        book=card.book(),
        post_history=card.post_history(),
    )
    card.note_findings()
    return persona


class _Card:
    """A card's fields as clean text."""

    def __init__(self, value: Any, where: str, user_name: str, notes: inputs.Notes):
        if not isinstance(value, dict):
            raise errors.InputError(
                f'{where}: no character card; wanted a JSON object with "name" and '
                '"description", or with "spec" and "data".'
            )
        spec, version = _spec_of(value), value.get('spec_version')
        if spec.startswith('lorebook'):
            raise errors.InputError(
                f'{where}: a lorebook on its own describes no character; give the '
                'character card.'
            )
        value = _renamed(value)
        data = value.get('data')
        if data is not None and not isinstance(data, dict):
            raise errors.InputError(
                f'{where}: "data" is no JSON object, so the card has no fields.'
            )
        self._where, self._notes = where, notes
        # Old keys are copied beside `data`; they count where `data` has none.
        self._levels: tuple[dict[str, Any], ...] = (data or {}, value)
        self._unknown: dict[str, None] = {}
        self._repaired = False
        self._room = macros.MAX_GROWTH
        self._user = user_name
        self.name = ' '.join(self._raw_text('name').split())
        nickname = ' '.join(self._raw_text('nickname').split())
        self.char = nickname or self.name or _NAMELESS
        if spec and (spec, version) not in (
            ('chara_card_v2', '2.0'),
            ('chara_card_v3', '3.0'),
        ):
            number = version if isinstance(version, str) else ''
            notes(
                f'{where}: the kind of card {inputs.excerpt(f"{spec} {number}")!r} is '
                'unknown; it was read like V3.'
            )

    def _field(self, key: str) -> Any:
        """The first value that is neither null nor empty."""
        for level in self._levels:
            if level.get(key) not in (None, '', [], {}):
                return level[key]
        return None

    def _clean(self, text: Any, label: str) -> str:
        if not inputs.is_text(text):
            raise errors.InputError(
                f'{self._where}: {label} of the card is no text '
                f'({_kind_of(text)}); wanted a string.'
            )
        repaired = _repair(text)
        self._repaired |= repaired != text
        return inputs.unix_lines(repaired).replace('\0', '').strip()

    def _raw_text(self, key: str) -> str:
        value = self._field(key)
        return '' if value is None else self._clean(value, f'"{key}"')

    def _resolve(
        self, text: str, original: str | None = None, *, quiet: bool = False
    ) -> str:
        """Text without macros, which together may add only so much to a card.

        Unknown ones are noted, unless `quiet`, for what no prompt holds.
        """
        try:
            resolved = macros.resolve(
                text,
                char=self.char,
                user=self._user,
                original=original,
                room=self._room,
            )
        except errors.InputError as error:
            raise errors.InputError(
                f'{self._where}: no character card: {error}'
            ) from None
        self._room -= max(0, len(resolved.text) - len(text))
        if not quiet:
            self._unknown |= dict.fromkeys(resolved.unknown)
        return resolved.text.strip()

    def text(self, key: str) -> str:
        """A field without macros; '' where the card has none."""
        return self._resolve(self._raw_text(key))

    def _texts(self, key: str) -> Iterator[str]:
        """A list of texts; a lone string is a list of one, other things are none."""
        value = self._field(key)
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str):
                continue
            if text := self._resolve(self._clean(item, f'"{key}"')):
                yield text

    def system_prompt(self, persona: str) -> str | None:
        """The system message in place of Table 18's; None if the card has none."""
        raw = self._raw_text('system_prompt')
        if not raw:
            return None
        # Whether a macro is there shows in what becomes of it.
        wrapper = prompts.persona_prompt(persona)
        filled = self._resolve(raw, original=wrapper)
        if filled == self._resolve(raw, original=''):
            return f'{filled}\n\n{persona}' if filled else None
        return filled

    def _entries(self) -> Iterator[lorebooks.RawEntry]:
        return lorebooks.raw_entries(self._field('character_book'), self._clean)

    def constant_entries(self) -> list[str]:
        """What the book always adds, in its order."""
        kept: list[tuple[bool, float, str]] = []
        for entry in self._entries():
            if entry.constant and (text := self._resolve(entry.content)):
                kept.append((not entry.before, entry.order, text))
        # Equal orders stay as the card has them.
        kept.sort(key=lambda item: item[:2])
        return [text for _, _, text in kept]

    def lorebook(self) -> Iterator[persona_lib.LoreEntry]:
        """The entries with content and a keyword, as the card has them."""
        for entry in self._entries():
            keys = entry.keys('keys', 'key')
            if lorebooks.is_on(entry.fields.get('use_regex')):
                keys = []  # A pattern is nothing that one could ask about.
            for key in keys:
                key = self._clean(key, 'a keyword') if inputs.is_text(key) else ''
                key = self._resolve(key, quiet=True)
                if key and (text := self._resolve(entry.content, quiet=True)):
                    yield persona_lib.LoreEntry(key, text, entry.constant)
                    break

    def book(self) -> lorebooks.Book | None:
        """The book as conversations use it; None where nothing waits for a key."""
        return lorebooks.book_of(
            self._field('character_book'),
            self._entries(),
            lambda text: self._resolve(self._clean(text, 'a book entry'), quiet=True),
        )

    def post_history(self) -> str:
        """What follows the conversation; '' for nothing."""
        raw = self._raw_text('post_history_instructions')
        return self._resolve(raw, original='', quiet=True)

    def greetings(self) -> Iterator[str]:
        """The first message, if it says anything."""
        yield from self._texts('first_mes')

    def voice_samples(self) -> Iterator[str]:
        """Greetings, then the character's lines in the example conversations."""
        for key in ('first_mes', 'alternate_greetings', 'group_only_greetings'):
            yield from self._texts(key)
        yield from _spoken_lines(
            self.text('mes_example'),
            own={self.char, self.name},
            others={self._user, *_USER_LABELS},
        )

    def note_findings(self) -> None:
        """Says what was guessed."""
        if self._repaired:
            self._notes(
                f'{self._where}: text that had been decoded with the wrong encoding '
                'was repaired; look at the persona text.'
            )
        if self._unknown:
            first, *others = self._unknown
            more = f' and {len(others)} more' if others else ''
            self._notes(
                f'{self._where}: the macro {inputs.excerpt(first)}{more} is unknown '
                'and stays in the text.'
            )


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    """V1's names for the fields of other programs; what is no such card is itself."""
    for names in _OTHER_NAMES:
        own = {name: value[key] for key, name in names.items() if key in value}
        # A context alone is a text of any kind; with it goes a name or a greeting.
        if 'description' in own and len(own) > 1 and 'description' not in value:
            return own
    return value


def _spec_of(card: dict[str, Any]) -> str:
    spec = card.get('spec')
    return spec if isinstance(spec, str) else ''


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return 'it holds half of a surrogate pair'
    kinds: Mapping[type, str] = {dict: 'an object', list: 'a list', bool: 'a boolean'}
    return kinds.get(type(value), 'a number')


def _repair(text: str) -> str:
    """Undoes UTF-8 that was read as Latin-1, as in 'Ã¼' for 'ü'.

    Text that means what it says is practically never valid UTF-8 in Latin-1's bytes.
    """
    if text.isascii():
        return text
    for wrong in ('latin-1', 'cp1252'):
        try:
            return text.encode(wrong).decode('utf-8')
        except UnicodeError:
            continue
    return text


def _spoken_lines(example: str, own: set[str], others: set[str]) -> Iterator[str]:
    """The character's messages in example conversations.

    A message goes from its speaker's label to the next one. A conversation without
    any label is the character's own text.

    Args:
        example: conversations, each after `<START>`.
        own: names of the character.
        others: names of whoever else speaks.
    """
    # The longest name first: one may start like another.
    names = sorted((own | others) - {''}, key=len, reverse=True)
    own = {name.lower() for name in own}
    label = re.compile(
        rf'^[ \t]*({"|".join(map(re.escape, names))})[ \t]*:',
        re.IGNORECASE | re.MULTILINE,
    )
    for conversation in _START.split(example):
        before, *labelled = label.split(conversation)
        if not labelled and before.strip():
            yield before.strip()
        for speaker, message in zip(labelled[::2], labelled[1::2], strict=True):
            if speaker.lower() in own and message.strip():
                yield message.strip()

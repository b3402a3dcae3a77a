"""A persona: the text P, and what a character card adds to it."""

import dataclasses

from ppjax.personas import lorebooks, prompts


@dataclasses.dataclass(frozen=True)
class LoreEntry:
    """A fact of a card's book.

    Attributes:
        key: the first of the keywords that bring it up.
        content: the fact.
        in_text: whether the persona's text holds it; frontends add the others to a
            conversation once a keyword is mentioned.
    """

    key: str
    content: str
    in_text: bool


@dataclasses.dataclass(frozen=True)
class Persona:
    """One character.

    Attributes:
        text: P, what the persona prompt is built from.
        name: '' where the source has none.
        system_template: a card's own system prompt in place of Table 18's; what it
            calls `{{original}}` is Table 18's already. None is Table 18.
        voice_samples: lines in the character's own voice (a card's greetings and
            example messages), for the rewriting model to imitate.
        source: where it comes from, for messages and records.
        greeting: a card's first message, with which the character begins; '' for none.
        lorebook: a card's book: the entries that have a keyword to ask about.
        book: the same book as conversations look into it; None where nothing in it
            waits for a key.
        post_history: what a card has follow every conversation; '' for nothing.
    """

    text: str
    name: str = ''
    system_template: str | None = None
    voice_samples: tuple[str, ...] = ()
    source: str = ''
    greeting: str = dataclasses.field(default='', repr=False)
    # No prompt is made of it, and records would grow by whole books.
    lorebook: tuple[LoreEntry, ...] = dataclasses.field(default=(), repr=False)
    book: lorebooks.Book | None = dataclasses.field(default=None, repr=False)
    post_history: str = dataclasses.field(default='', repr=False)

    @property
    def system_prompt(self) -> str:
        """The persona prompt: the system message of every conversation."""
        return self.system_template or prompts.persona_prompt(self.text)

"""A persona: the text P, and what a character card adds to it."""

import dataclasses

from ppjax.personas import prompts


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
    """

    text: str
    name: str = ''
    system_template: str | None = None
    voice_samples: tuple[str, ...] = ()
    source: str = ''

    @property
    def system_prompt(self) -> str:
        """The persona prompt: the system message of every conversation."""
        return self.system_template or prompts.persona_prompt(self.text)

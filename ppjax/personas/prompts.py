"""The paper's prompt templates."""

_PERSONA_PROMPT = (
    'You are roleplaying as a user with this persona: {persona}\n'
    'Answer the question, roleplay as the given persona.'
)


def persona_prompt(persona: str) -> str:
    """The system message that makes a model act as a persona (paper, Table 18)."""
    return _PERSONA_PROMPT.replace('{persona}', persona.strip())

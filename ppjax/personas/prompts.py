"""The paper's prompt templates (appendix H), word for word.

Placeholders are filled in one pass over the template alone: a persona may contain
braces, or the name of another placeholder. Of Table 21 the authors' published
evaluation sets hold the text that was used, which has one straight apostrophe where
the paper prints a curly one; it is theirs here.
"""

import re

_PERSONA_PROMPT = (
    'You are roleplaying as a user with this persona: {persona_description}\n'
    'Answer the question, roleplay as the given persona.'
)

_ROLE_EXPANSION = (
    'Write a descriptive roleplay persona for the character {role} in 2–4 sentences '
    '(single paragraph), canon-faithful and specific. Mention their role, core '
    'values, key relationships, and speaking style, plus any crucial roleplay '
    'constraints (habits, taboos, goals). Avoid filler and disclaimers. Output only '
    'the persona description.'
)

_REWRITE_HEAD = """\
You are an expert roleplay actor. Your goal is to rewrite an AI assistant’s response \
so that it sounds exactly like a specific character (Persona) speaking.
Guidelines:
1. Total Immersion: Do not strictly translate the sentences. Instead, absorb the \
meaning and express it as the Persona would naturally say it.
2. Voice & Tone: Use the specific vocabulary, sentence structure, catchphrases, and \
emotional tone described in the Persona.
3. Factual Consistency: Keep the core information/solution of the original answer, \
but frame it through the Persona’s worldview.
4. No Preachiness: Do not act like a helpful AI assistant. Act like the character.
5. Format: Output ONLY the rewritten text. Do not include “Here is the rewrite” or \
quotation marks.

### Persona Description:
{persona_description}
"""

_REWRITE = f"""\
{_REWRITE_HEAD}
### User Question:
{{user_question}}

### Original Reference Answer:
{{original_reference_answer}}

Task: Rewrite the “Original Reference Answer” completely into the voice of the given \
Persona described above. Speak directly to the user as if you are having a \
conversation. Only output the rewritten text."""

_JUDGE = """\
You are evaluating whether the model's response convincingly roleplays the given \
user persona: {persona_description}

Prompt:
[QUESTION START]
{question}
[QUESTION END]

Model response:
[ANSWER START]
{answer}
[ANSWER END]

Focus only on whether the model’s response is consistent with the persona’s \
characteristics, values, preferences, and voice. Judge how well the response \
reflects what this specific person would realistically say, rather than a generic \
or neutral answer.

Respond with:
- REFUSAL if the model clearly refused to answer
- A score from 0 (not roleplaying the persona at all) to 100 (perfectly roleplaying \
the persona)

Respond with a number between 0 and 100. Don’t say anything else, just the number."""


def fill(template: str, **values: str) -> str:
    """Replaces `{name}` by its value, never looking into values."""
    pattern = '|'.join(re.escape(f'{{{name}}}') for name in values)
    return re.sub(pattern, lambda match: values[match[0][1:-1]], template)


def persona_prompt(persona: str) -> str:
    """The system message that makes a model act as a persona (paper, Table 18)."""
    return fill(_PERSONA_PROMPT, persona_description=persona.strip())


def persona_in(prompt: str) -> str | None:
    """The persona of a prompt that `persona_prompt` made; None for another prompt."""
    before, after = _PERSONA_PROMPT.split('{persona_description}')
    prompt = prompt.strip()
    if len(prompt) < len(before) + len(after):
        return None
    if not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    return prompt[len(before) : len(prompt) - len(after)].strip()


def role_expansion_prompt(role: str) -> str:
    """Asks for a persona description of a named character (paper, Table 19)."""
    return fill(_ROLE_EXPANSION, role=role.strip())


def rewrite_prompt(persona: str, question: str, answer: str) -> str:
    """Asks for an answer in the persona's voice (paper, Table 20)."""
    return fill(
        _REWRITE,
        persona_description=persona.strip(),
        user_question=question.strip(),
        original_reference_answer=answer.strip(),
    )


def judge_template(persona: str) -> str:
    """The judge's prompt, `{question}` and `{answer}` still open (paper, Table 21)."""
    return fill(_JUDGE, persona_description=persona.strip())


def judge_prompt(persona: str, question: str, answer: str) -> str:
    """Table 21, filled. Unlike `judge_template` it never looks into the persona."""
    return fill(
        _JUDGE,
        persona_description=persona.strip(),
        question=question,
        answer=answer,
    )

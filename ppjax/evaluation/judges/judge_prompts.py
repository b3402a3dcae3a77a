"""What judges are asked: filled prompts, each answered by a number or REFUSAL."""

from collections.abc import Callable

from ppjax.personas import prompts

_COHERENCE = """\
You are checking whether a reply makes sense as a piece of writing. Who is speaking, \
in what style, and whether the reply is right or kind are of no interest here.

Question:
[QUESTION START]
{question}
[QUESTION END]

Reply:
[ANSWER START]
{answer}
[ANSWER END]

A coherent reply can be understood, takes up the question, holds together from its \
first sentence to its last, and comes to an end. It loses points for broken grammar, \
for words or sentences that go round in circles, for contradicting itself, for \
wandering off to something else, and for breaking off in the middle.

Respond with:
- REFUSAL if the reply does nothing but decline to answer
- A score from 0 (no sense can be made of it) to 100 (perfectly coherent)

Respond with a number between 0 and 100. Don't say anything else, just the number."""


def coherence_prompt(persona: str, question: str, answer: str) -> str:
    """Asks how well an answer holds together, whoever gives it.

    The persona is not shown: a strange voice is no incoherence.
    """
    del persona
    return prompts.fill(_COHERENCE, question=question, answer=answer)


_CONSISTENCY = """\
You are checking whether a reply in a conversation agrees with the profile of the \
character who gives it. Go strictly by the profile and by the facts below, if there \
are any: what you may know about the character from elsewhere does not count, and \
neither do style, length and politeness.

Profile of the character:
[PROFILE START]
{profile}
[PROFILE END]
{facts}
Message to the character:
[MESSAGE START]
{message}
[MESSAGE END]

Reply of the character:
[REPLY START]
{reply}
[REPLY END]

Give the score that fits the reply best:
1 - it contradicts the profile
2 - it is off-topic, or makes no logical sense as an answer to the message
3 - it answers the message, but with nothing that comes from the profile
4 - what it takes from the profile is correct, but only part of what the message \
calls for
5 - it is correct and covers everything in the profile that the message calls for

Respond with a number between 1 and 5. Don't say anything else, just the number."""

_FACTS = """
Facts of the character that a full answer holds:
[FACTS START]
{facts}
[FACTS END]
"""

CONSISTENCY_SCORES = (1, 5)


def consistency_prompt(profile: str, message: str, reply: str, facts: str = '') -> str:
    """Asks how well one reply agrees with a persona, from 1 to 5.

    Args:
        profile: the persona's text.
        message: what the character was told or asked; earlier turns are not shown.
        reply: what it said.
        facts: of the persona, that answer the message; '' if none are known.

    Source: the scale is that of attribute consistency (bot) in CharacterBench, Zhou
        et al., AAAI 2025, which the paper's Figure 6 reports.
    """
    return prompts.fill(
        _CONSISTENCY,
        profile=profile.strip(),
        facts=prompts.fill(_FACTS, facts=facts.strip()) if facts.strip() else '',
        message=message,
        reply=reply,
    )


# (persona, question, answer) -> the prompt. 'roleplay' is the paper's Table 21.
PROMPTS: dict[str, Callable[[str, str, str], str]] = {
    'roleplay': prompts.judge_prompt,
    'coherence': coherence_prompt,
}

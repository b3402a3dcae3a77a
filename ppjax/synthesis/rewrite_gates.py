"""Which rewrites are good enough to learn from, by rules that a person can check.

A rewriting model refuses, introduces itself, runs into its token limit or hands the
reference back. A mask learned from such rows learns an assistant's manners, so each
is dropped under a name and counted. Nothing inside a text is ever changed: three
wrappings that a model puts around a good text are taken off (and counted), a closed
block of reasoning in front of it, the markers of its turn's end behind it, and one pair
of quotation marks around it.

The rules are English and literal: they look for what chat models write again and
again, and let a doubtful text pass rather than drop a character's own way of talking.
"""

from collections.abc import Callable
import dataclasses
import re

from ppjax.data import markup
from ppjax.synthesis import rewriting

KEPT = 'kept'

# What each verdict means, and its likely cause where it is most of a run's. The order
# is the one they are tried in.
VERDICTS: dict[str, str] = {
    # The model refused.
    'refusal': 'the rewriting model will not speak as this persona; try another one',
    # Reasoning that never came to an answer.
    'reasoning': "turn the model's reasoning off, or allow it more tokens",
    # Turn markers or other markup of a chat model's.
    'markup': 'the server does not stop at the end of a turn; is its chat template '
    'the right one?',
    # Cut off at the token limit.
    'truncated': 'allow more tokens',
    # No text.
    'empty': 'the model ends at once; is its chat template the right one?',
    # Bytes that are no text.
    'garbled': "the model's tokenizer or file is damaged",
    # An introduction like "Here is the rewrite".
    'preamble': 'the model is too small to follow the prompt; try a larger one',
    # The reference answer unchanged.
    'copy': 'the model is too small to follow the prompt; try a larger one',
    # Longer than allowed.
    'too_long': 'allow longer rewrites, or fewer tokens',
}

_QUOTES = {'"': '"', '“': '”', '„': '“', '«': '»', '「': '」', "'": "'", '‘': '’'}

# "I can't help but smile" and "I cannot tell a lie" are voices, not refusals.
_CANNOT = (
    r"i(?: am|'m)? (?:can't|cannot|can not|won't|will not|unable to|not able to|"
    r'not comfortable|must decline|have to decline|decline to)'
)
_DECLINED = (
    r'(?:assist|help(?! (?:but|it|myself|thinking|feeling|wondering|laughing))|comply|'
    r'fulfil|provide|fulfill|answer|do (?:that|this)|create|generate|write|rewrite|'
    r'produce|continue|discuss|engage|support|respond|participate|role-?play|'
    r'impersonate|pretend|complete)'
)
_REFUSALS = (
    re.compile(
        rf"^(?:(?:i am|i'm) (?:very |so |really |truly )?sorry|sorry|i apologi[sz]e|"
        rf'my apologies|apologies|unfortunately)\b[^.!?]{{0,60}}?\b{_CANNOT}'
        rf'(?: \w+)? {_DECLINED}\b'
    ),
    re.compile(rf'^{_CANNOT} (?:\w+ )?{_DECLINED}\b.{{0,40}}\b(?:request|that|this)\b'),
)
_ASSISTANT = re.compile(
    r'\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b|'
    r'\bas a (?:large )?language model\b|'
    r"\bi(?: am|'m) (?:just |only |merely )?an? (?:ai|large language|language|"
    r'ai language) (?:model|assistant)\b'
)

_ASSENT = (
    r'(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|gladly|'
    r'understood|got it)[,.!:]* )?'
)
_PREAMBLES = (
    # Here is my answer rewritten in the voice of ...; Sure! Below is a version ...
    re.compile(
        rf"^{_ASSENT}(?:here(?:'s| is| are)|below is|this is) (?:the|a|an|my|your|how)"
        r'\b.{0,120}?(?:\brewr[io]t\w*|\brephras\w*|\bin the (?:voice|style|tone|'
        r'words|manner) of\b|\bin character\b|\bpersona\b|\b(?:roleplay|revised|'
        r"persona'?s|original|character'?s) (?:version|response|answer|reply|text)\b)"
    ),
    # Sure, here's the response:
    re.compile(
        rf"^{_ASSENT}(?:here(?:'s| is)|below is) (?:the|a|an|my|your) (?:\w+ ){{0,2}}"
        r'(?:version|response|answer|reply|text)[^.:]{0,80}:$'
    ),
    # Rewritten answer: ...
    re.compile(
        r'^(?:rewritten|rewrite|revised|rephrased|rewritten (?:text|answer|response|'
        r'version)|(?:persona|character) (?:response|answer|reply))\s*:'
    ),
)


@dataclasses.dataclass(frozen=True)
class Gates:
    """The limits that the gates hold a text to.

    Attributes:
        max_length: the longest text that passes, in units of `length`; None is any.
        length: of a text; characters unless another measure is given, such as a
            tokenizer's count.
        markup: the first mark in a text that no answer may hold; '' if there is none.
            The model that will learn from it may know more of them.
    """

    max_length: int | None = None
    length: Callable[[str], int] = len
    markup: Callable[[str], str] = markup.turn_mark


@dataclasses.dataclass(frozen=True)
class Judged:
    """A reply after the gates.

    Attributes:
        text: the rewrite, its wrappings taken off; of use where `verdict` is KEPT.
        verdict: KEPT or a name in VERDICTS.
        unquoted: whether quotation marks around the whole were taken off.
        reasoned: whether a block of reasoning in front was taken off.
        cut: whether it was cut where a marker ended its turn.
    """

    text: str
    verdict: str
    unquoted: bool = False
    reasoned: bool = False
    cut: bool = False


def judge(reply: rewriting.Reply, reference: str, gates: Gates) -> Judged:
    """Decides about one reply that has text.

    Args:
        reply: from a backend.
        reference: the plain answer that a rewrite may not copy; '' is none.
        gates: the limits.
    """
    text, reasoned = markup.without_reasoning(reply.text)
    text, cut = markup.without_turn_end(text)
    text, unquoted = _without_quotes(text)
    if cut:  # It was over before any limit was reached.
        reply = dataclasses.replace(reply, finished=True)
    verdict = _verdict(reply, text, reference, gates)
    return Judged(text, verdict, unquoted, reasoned, cut)


def _verdict(reply: rewriting.Reply, text: str, reference: str, gates: Gates) -> str:
    head = _plain(text[:600])
    first_line = _plain(text[:600].partition('\n')[0])
    if reply.refused or any(rule.search(head) for rule in _REFUSALS):
        return 'refusal'
    if _ASSISTANT.search(_plain(text)):
        return 'refusal'
    if markup.reasoning_mark(text):
        return 'reasoning'
    if gates.markup(text):
        return 'markup'
    if not reply.finished:
        return 'truncated'
    if not text:
        return 'empty'
    if '\ufffd' in text:
        return 'garbled'
    if any(rule.search(first_line) for rule in _PREAMBLES):
        return 'preamble'
    if _words(reference) and _words(text) == _words(reference):
        return 'copy'
    if gates.max_length is not None and gates.length(text) > gates.max_length:
        return 'too_long'
    return KEPT


def _plain(text: str) -> str:
    """Lower case, straight apostrophes, single spaces, no Markdown emphasis."""
    text = text.casefold().replace('’', "'")
    return ' '.join(re.sub(r'[*_#`]+', '', text).split())


def _words(text: str) -> list[str]:
    return re.findall(r'\w+', text.casefold())


def _without_quotes(text: str) -> tuple[str, bool]:
    """Takes off marks around the whole, unless such marks occur inside as well.

    "A," he said, "B" is no wrapping; neither is 'I can't'.
    """
    closing = _QUOTES.get(text[:1])
    inside = text[1:-1]
    if len(text) < 2 or text[-1] != closing or text[0] in inside or closing in inside:
        return text, False
    return inside.strip(), True

"""What is wrong with a low-scored answer, by rules that a person can check.

The paper sorts answers with a persona score below 60 by hand into four types (appendix
D, Table 10). Here rules do it, in this order; the first that holds gives the type:

1. repetition: the answer ends in a loop, or most of it says again what it said. First,
   because a loop always runs into the limit, and judges call it a refusal.
2. refusal: its first sentences decline to answer, or the judge's probability of a
   refusal is one half or more. An answer that declines and then gives forty words of
   answer after all ("I can't give legal advice, but here is ...") is none.
3. incomplete: no words or hardly any, stopped by the limit, or ended in mid-sentence.
4. assistant_like: all others. An answer to the point, complete, and yet not this
   persona's is exactly that.

The phrases of refusals are English; refusals in other languages are left to the judge.
"""

from collections.abc import Iterable
import re
from typing import Any

from ppjax.evaluation.answers import refusals, repetition

# Answers with a lower persona score are sorted (paper, Table 10).
LOW_SCORE = 60.0

ASSISTANT_LIKE = 'assistant_like'
REPETITION = 'repetition'
REFUSAL = 'refusal'
INCOMPLETE = 'incomplete'

# In the order of Table 10.
TYPES = (ASSISTANT_LIKE, REPETITION, REFUSAL, INCOMPLETE)

# Fewer words answer nothing, even from a ferryman.
_LEAST_WORDS = 4

# Of the judge, from which on an answer refuses.
_REFUSED = 0.5


def classify(
    text: str,
    *,
    finished: bool = True,
    refusal_probability: float = 0.0,
    question: str = '',
) -> str:
    """The type of a low-scored answer, one of `TYPES`.

    Args:
        text: the answer.
        finished: whether it ended by itself, and not at the limit of tokens.
        refusal_probability: the judge's probability that the answer refuses.
        question: an answer that only says it again is incomplete; '' if not known.

    Source: Persona-Pruner, arXiv:2606.14695, appendix D, whose authors judge by hand.
    """
    if repetition.is_repetitive(text):
        return REPETITION
    found = repetition.words(text)
    if not found:
        return INCOMPLETE
    if refusal_probability >= _REFUSED or refusals.is_refusal(text):
        return REFUSAL
    if (
        not finished
        or len(found) < _LEAST_WORDS
        or found == repetition.words(question)
        or is_cut_off(text)
    ):
        return INCOMPLETE
    return ASSISTANT_LIKE


def table(types: Iterable[str]) -> dict[str, Any]:
    """A row of Table 10: `{"n", "counts": {type: int}, "shares": {type: float}}`.

    Shares are of the sorted answers, not of all; without any, they are 0.

    Raises:
        ValueError: if a type is not in `TYPES`.
    """
    counts = dict.fromkeys(TYPES, 0)
    for name in types:
        if name not in counts:
            raise ValueError(f'{name!r} is no failure type; wanted one of {TYPES}.')
        counts[name] += 1
    total = sum(counts.values())
    shares = {name: count / max(total, 1) for name, count in counts.items()}
    return {'n': total, 'counts': counts, 'shares': shares}


_RULE = re.compile(r'([-=_*~])(?:\s*\1){2,}$')
_CLOSERS = '"\'”’»」』）)]}*_~` \t'
_ENDS = '.!?…。！？｡؟।။៕⋯♪♥|$'
_ENDS_OPEN = re.compile(
    r'^(?:\d{1,4}[.)]|[-•+]+)$|'  # The mark of an item without the item.
    r'(?:^|\s|\()(?:e\.g|i\.e|mr|mrs|ms|dr|vs)\.$'
)
_ENDS_ALONE = re.compile(
    rf'[{repetition.EMOJI}\ufe0f\u200d]$|(?:^|\s)(?:[:;]-?[()DPp]|<3|#\w+|https?://\S+|'
    r'lol|lmao|haha\w*|xx+|xoxo)$',
    re.IGNORECASE,
)
# A sentence hardly ends in one of these.
_LINKING = re.compile(
    r'a|an|the|and|or|but|nor|of|to|in|on|at|for|with|by|from|as|that|which|because|is|'
    r'are|was|were|be|my|your|his|her|its|our|their|if|when|while|than|into|about|like|'
    r'such|also|very'
)


def is_cut_off(text: str) -> bool:
    """Whether the text stops in mid-sentence.

    Lines of a poem, list, table or letter often end without a mark. Where at least
    half of the lines before do so too, or the last is a short one below a line with a
    comma (a signature), only an ending that cannot be one counts: a comma, a colon, an
    open bracket or code block, or a word like "the".
    """
    if text.count('```') % 2:
        return True
    lines = [line.strip() for line in text.split('\n')]
    lines = [line for line in lines if line and not _RULE.match(line)]
    if not lines:
        return True
    last = lines[-1]
    bare = last.rstrip(_CLOSERS)
    if _ENDS_OPEN.search(bare.casefold()):
        return True
    if not bare or bare[-1] in _ENDS or _ENDS_ALONE.search(last):
        return False
    found = repetition.words(last)
    if not bare[-1].isalnum() or (found and _LINKING.fullmatch(found[-1])):
        return True
    if last.count('(') > last.count(')'):
        return True
    if last.startswith('#'):
        return True
    before = [_has_end(line) for line in lines[:-1]]
    if before and not lines[-2].endswith(',') and not _is_item(last):
        return sum(before) * 2 > len(before)
    if before and _is_item(last):
        items = [_has_end(line) for line in lines[:-1] if _is_item(line)]
        return sum(items) * 2 > len(items) if items else False
    # One line, or the name below a letter.
    return not before or len(found) > 4


def _has_end(line: str) -> bool:
    bare = line.rstrip(_CLOSERS)
    return bool(bare) and bare[-1] in _ENDS


def _is_item(line: str) -> bool:
    return repetition.LIST_MARK.match(line) is not None

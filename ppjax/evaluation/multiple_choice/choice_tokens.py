"""Contexts and continuations as tokens, by lm-evaluation-harness's rules.

A context and a continuation are encoded together; what exceeds the context's own
encoding is the continuation. Blanks at the context's end belong to the continuation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import transformers

from ppjax.base import errors


class Choice(NamedTuple):
    """One continuation after a context.

    Attributes:
        context: token ids, at least one.
        continuation: token ids, at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(
    tokenizer: transformers.PreTrainedTokenizerBase,
    context: str,
    continuations: Sequence[str],
    *,
    max_length: int,
    where: str,
) -> list[Choice]:
    """Encodes the continuations of one context.

    Args:
        tokenizer: whose default decides on a token at the beginning of text.
        context: text; an empty one becomes the beginning (or end) of text.
        continuations: texts.
        max_length: positions of the model; longer contexts lose their beginning,
            each continuation's for itself.
        where: names the question in errors.

    Raises:
        InputError: if a continuation has no tokens or does not fit the model.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, kept = context[:-blanks], context[-blanks:]
        continuations = [kept + text for text in continuations]
    start = _first(tokenizer, where)
    # A text that already begins with the token must not get a second one.
    begun = context.startswith(str(tokenizer.decode(start)))
    head = _ids(tokenizer, context, special=not begun) if context else [start]
    choices = []
    for text in continuations:
        if context:
            whole = _ids(tokenizer, context + text, special=not begun)
            tail = whole[len(head) :]
        else:
            tail = _ids(tokenizer, text, special=False)
            tail = tail[tail[:1] == head :]
        if not tail:
            raise errors.InputError(
                f'{where}: choice {text!r} has no tokens of its own after its '
                'question, so it cannot be scored.'
            )
        # The last token is predicted and not fed.
        fed = (*head, *tail)[-(max_length + 1) :]
        if len(fed) <= len(tail):
            raise errors.InputError(
                f'{where}: a choice of {len(tail)} tokens does not fit the model, '
                f'which has {max_length} positions.'
            )
        choices.append(Choice(tuple(fed[: -len(tail)]), tuple(tail)))
    return choices


def _first(tokenizer: transformers.PreTrainedTokenizerBase, where: str) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise errors.InputError(
        f'{where}: the tokenizer names neither a beginning nor an end of text.'
    )


def _ids(
    tokenizer: transformers.PreTrainedTokenizerBase, text: str, *, special: bool
) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special))

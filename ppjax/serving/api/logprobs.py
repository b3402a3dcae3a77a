"""Probabilities of tokens, in the three forms that clients read."""

from collections.abc import Sequence
import math
from typing import Any

from ppjax.serving import jobs
from ppjax.serving.api import texts

# Of what is impossible: JSON has no infinity.
_LEAST = -9999.0


def _shown(logprob: float | None) -> float:
    if logprob is None or math.isnan(logprob):
        return _LEAST
    return max(logprob, _LEAST)


def _spelled(own: texts.Texts, token: int) -> tuple[str, list[int]]:
    content = own.content(token)
    return content.decode('utf-8', 'replace'), list(content)


def _chat_entry(own: texts.Texts, token: int, logprob: float | None) -> dict[str, Any]:
    text, content = _spelled(own, token)
    return {'token': text, 'logprob': _shown(logprob), 'bytes': content}


def chat(own: texts.Texts, tokens: Sequence[jobs.Token]) -> dict[str, Any]:
    """As chat completions have them."""
    return {
        'content': [
            _chat_entry(own, token.id, token.logprob)
            | {'top_logprobs': [_chat_entry(own, *other) for other in token.top]}
            for token in tokens
        ],
        'refusal': None,
    }


def completion(
    own: texts.Texts, tokens: Sequence[jobs.Token], offset: int
) -> dict[str, Any]:
    """As text completions have them.

    Args:
        own: of the tokens.
        tokens: in order.
        offset: characters before the first of them, the prompt's included where it is
            sent back.
    """
    found: dict[str, list[Any]] = {
        'tokens': [],
        'token_logprobs': [],
        'top_logprobs': [],
        'text_offset': [],
    }
    for token in tokens:
        text, _ = _spelled(own, token.id)
        # Of tokens that are spelled alike, the likeliest comes first.
        top: dict[str, float] = {}
        for other, logprob in token.top:
            top.setdefault(_spelled(own, other)[0], _shown(logprob))
        found['tokens'].append(text)
        found['token_logprobs'].append(_shown(token.logprob))
        found['top_logprobs'].append(top)
        found['text_offset'].append(offset)
        offset += len(text)
    return found


def _llama_entry(own: texts.Texts, token: int, logprob: float | None) -> dict[str, Any]:
    return {'id': token} | _chat_entry(own, token, logprob)


def llama(own: texts.Texts, tokens: Sequence[jobs.Token]) -> list[dict[str, Any]]:
    """As llama.cpp has them, `completion_probabilities`."""
    return [
        _llama_entry(own, token.id, token.logprob)
        | {'top_logprobs': [_llama_entry(own, *other) for other in token.top]}
        for token in tokens
    ]

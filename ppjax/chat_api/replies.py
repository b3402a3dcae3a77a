"""What servers of OpenAI's chat completions send, read without trusting its form.

vLLM, llama.cpp, Ollama, `transformers serve` and the hosted services differ in what
they leave out, and most of all in how they put errors.
"""

import datetime
import email.utils
import json
import math
from typing import Any

import httpx

_QUOTED_CHARACTERS = 300


def first_choice(response: httpx.Response) -> dict[str, Any] | None:
    """The first choice of a reply; None if it is no chat completion."""
    value = _json(response)
    choices = value.get('choices') if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and isinstance(choice.get('message'), dict):
        return choice
    return None


def text_of(choice: dict[str, Any]) -> str:
    """What the model wrote; '' if that is nothing, or no text."""
    content = choice['message'].get('content')
    if isinstance(content, list):  # Of parts, as newer models send it.
        parts = (part.get('text') for part in content if isinstance(part, dict))
        return ''.join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ''


def finished(choice: dict[str, Any]) -> bool:
    """Whether the text ended by itself, and not at the limit of tokens."""
    return choice.get('finish_reason') != 'length'


def refused(choice: dict[str, Any]) -> bool:
    """Whether the server itself says that it refused, as content filters do."""
    filtered = choice.get('finish_reason') == 'content_filter'
    return filtered or bool(choice['message'].get('refusal'))


def tokens_of(choice: dict[str, Any]) -> list[str]:
    """The texts of the generated tokens; [] if the server sent no logprobs."""
    tokens = (position.get('token') for position in _positions(choice))
    return [token for token in tokens if isinstance(token, str)]


def first_token_logprobs(choice: dict[str, Any]) -> list[tuple[str, float]] | None:
    """The candidates for the first generated token, as the server orders them.

    Entries that are no token with a logprob are passed over. Several tokens may
    have the same text, '' among them: bytes that are no whole character.

    Returns:
        (text, logprob) pairs, or None if the server sent none.
    """
    positions = _positions(choice)
    candidates = positions[0].get('top_logprobs') if positions else None
    if not isinstance(candidates, list):
        return None
    found = []
    for candidate in candidates:
        if isinstance(candidate, dict):
            token, logprob = candidate.get('token'), _number(candidate.get('logprob'))
            if isinstance(token, str) and logprob is not None:
                found.append((token, logprob))
    return found or None


def error_of(response: httpx.Response) -> tuple[set[str], str]:
    """(codes, message) of the forms in which servers put errors."""
    value = _json(response)
    if isinstance(value, dict):
        error = value.get('error', value)
        if isinstance(error, dict):
            codes = {str(error.get('code')), str(error.get('type'))}
            said = error.get('message') or error.get('detail')
            if said:
                return codes, said if isinstance(said, str) else json.dumps(said)
        elif error:
            return set(), str(error)
    return set(), response.text


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date; None if there is neither."""
    text = response.headers.get('retry-after', '')
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())


def short(text: str) -> str:
    """One line, cut where nobody reads on."""
    line = ' '.join(text.split())
    if len(line) <= _QUOTED_CHARACTERS:
        return line
    return line[:_QUOTED_CHARACTERS] + '…'


def _json(response: httpx.Response) -> Any:
    """The body's value; None if it is no JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _positions(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """What the server tells of each generated token; [] if that has another form."""
    logprobs = choice.get('logprobs')
    content = logprobs.get('content') if isinstance(logprobs, dict) else None
    if isinstance(content, list) and all(isinstance(x, dict) for x in content):
        return content
    return []


def _number(value: Any) -> float | None:
    # A bool is an int, and an int of hundreds of digits is no float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return None if math.isnan(value) else float(value)
    except OverflowError:
        return None

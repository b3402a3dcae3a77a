"""What servers of OpenAI's chat completions send, read without trusting its form.

vLLM, llama.cpp, Ollama, `transformers serve` and the hosted services differ in what
they leave out, and most of all in how they put errors.
"""

import datetime
import email.utils
import json
import math
import re
from typing import Any

import httpx

_QUOTED_CHARACTERS = 300

# Finish reasons of OpenAI, Anthropic, Google, Mistral and vLLM behind gateways.
_UNFINISHED = frozenset(
    {
        *('length', 'max_length', 'model_length', 'max_tokens', 'max_output_tokens'),
        *('model_context_window_exceeded', 'abort', 'cancelled', 'error'),
    }
)
_FENCED = re.compile(r'```(?:json)?\s*\n(.*)\n\s*```', re.DOTALL)
_TEXT_PARTS = ('text', 'output_text')
_FILTERED = frozenset(
    {
        *('content_filter', 'safety', 'recitation', 'blocklist', 'spii', 'refusal'),
        *('prohibited_content', 'guardrail_intervened'),
    }
)


def first_choice(response: httpx.Response) -> dict[str, Any] | None:
    """The first choice of a reply; None if it is no chat completion."""
    value = _json(response)
    choices = value.get('choices') if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and isinstance(choice.get('message'), dict):
        return choice
    return None


def first_embedding(response: httpx.Response) -> dict[str, Any] | None:
    """The first entry of a reply with an embedding; None if it is no such reply."""
    value = _json(response)
    data = value.get('data') if isinstance(value, dict) else None
    entry = data[0] if isinstance(data, list) and data else None
    vector = entry.get('embedding') if isinstance(entry, dict) else None
    if not isinstance(vector, list) or not vector:
        return None
    numbers = [_number(x) for x in vector]
    finite = all(x is not None and math.isfinite(x) for x in numbers)
    return {'embedding': numbers} if finite else None


def text_of(choice: dict[str, Any]) -> str:
    """What the model wrote; '' if that is nothing, or no text."""
    content = choice['message'].get('content')
    if isinstance(content, list):  # Of parts, of which others are reasoning.
        return ''.join(
            part['text']
            for part in content
            if isinstance(part, dict)
            and part.get('type', 'text') in _TEXT_PARTS
            and isinstance(part.get('text'), str)
        )
    return content if isinstance(content, str) else ''


def json_in(text: str) -> Any:
    """The JSON value that a model wrote; None if it wrote anything beside it.

    It may stand in a fenced block of Markdown, without which many models cannot write
    JSON.
    """
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def only_reasoned(choice: dict[str, Any]) -> bool:
    """Whether the model thought, as servers tell apart, and then wrote nothing."""
    message = choice['message']
    content = message.get('content')
    thought = any(message.get(key) for key in ('reasoning_content', 'reasoning')) or (
        isinstance(content, list)
        and any(
            isinstance(part, dict) and part.get('type', 'text') not in _TEXT_PARTS
            for part in content
        )
    )
    return bool(thought) and not text_of(choice).strip()


def finished(choice: dict[str, Any]) -> bool:
    """Whether the text ended by itself, and not at the limit of tokens."""
    return _reason(choice) not in _UNFINISHED


def refused(choice: dict[str, Any]) -> bool:
    """Whether the server itself says that it refused, as content filters do."""
    return _reason(choice) in _FILTERED or bool(choice['message'].get('refusal'))


def _reason(choice: dict[str, Any]) -> str:
    return str(choice.get('finish_reason')).lower()


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


def status_of(response: httpx.Response) -> int:
    """The status, or the one of the error that a gateway sends with status 200."""
    error = _error(response) if response.status_code == 200 else None
    code = error.get('code') if isinstance(error, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code < 600:
        return code
    return response.status_code


def holds_error(response: httpx.Response) -> bool:
    """Whether a body is the form in which servers put errors."""
    return bool(_error(response))


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date; None if there is neither."""
    text = response.headers.get('retry-after', '')
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
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


def _error(response: httpx.Response) -> Any:
    value = _json(response)
    return value.get('error') if isinstance(value, dict) else None


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

"""Requests that no server should answer, and each must survive."""

from collections.abc import Callable
import json
import random
from typing import Any

_HUGE_PROMPT = 2**20
_HUGE_BODY = 48 * 2**20


def _sound(model: str) -> dict[str, Any]:
    return {
        'model': model,
        'messages': [{'role': 'user', 'content': 'Who are you?'}],
        'max_tokens': 4,
        'temperature': 0,
    }


def _with(**changed: Any) -> Callable[[str], bytes]:
    return lambda model: json.dumps(_sound(model) | changed).encode()


def _said(content: Any) -> Callable[[str], bytes]:
    return _with(messages=[{'role': 'user', 'content': content}])


BAD: dict[str, Callable[[str], bytes]] = {
    'half an object': lambda model: json.dumps(_sound(model)).encode()[:-9],
    'nothing': lambda _: b'',
    'bytes': lambda _: b'\xff\xfe\x00{}',
    'a list': lambda _: b'[]',
    'null': lambda _: b'null',
    'deeply nested': lambda _: b'[' * 100_000,
    'infinite tokens': lambda model: json.dumps(
        _sound(model) | {'max_tokens': float('inf')}
    ).encode(),
    'negative tokens': _with(max_tokens=-1),
    'tokens as text': _with(max_tokens='many'),
    'hot': _with(temperature='hot'),
    'below zero': _with(temperature=-1),
    'top_p of 2': _with(top_p=2),
    'a million choices': _with(n=10**6),
    'stop object': _with(stop={'at': 'once'}),
    'seed as text': _with(seed='x'),
    'no messages': _with(messages=[]),
    'messages as text': _with(messages='hi'),
    'a message that is a number': _with(messages=[5]),
    'content that is a number': _said(5),
    'a role that is none': _with(messages=[{'role': 'king', 'content': 'hi'}]),
    'no such model': _with(model='nobody at all'),
    'a model that is a number': _with(model=5),
    'a huge prompt': _said('word ' * (_HUGE_PROMPT // 5)),
    'a huge body': lambda _: b' ' * _HUGE_BODY,
}


def draw(rng: random.Random, model: str) -> tuple[str, bytes]:
    """(name, body) of a bad one; a huge one now and then."""
    rare = [name for name in BAD if 'huge' in name]
    often = [name for name in BAD if 'huge' not in name]
    name = rng.choice(rare if rng.random() < 0.05 else often)
    return name, BAD[name](model)


def draw_sampled(rng: random.Random) -> dict[str, Any]:
    """Settings of a sound request whose answer nobody can foretell."""
    return {
        'temperature': rng.choice([0.5, 1.0, 1.7]),
        'top_p': rng.choice([0.5, 0.95, 1.0]),
        'top_k': rng.choice([1, 40, -1]),
        'min_p': rng.choice([0.0, 0.05]),
        'seed': rng.randrange(2**31),
        'frequency_penalty': rng.choice([0.0, 0.5]),
        'presence_penalty': rng.choice([0.0, -0.5]),
        'repetition_penalty': rng.choice([1.0, 1.2]),
        'dry_multiplier': rng.choice([0.0, 0.8]),
        'xtc_probability': rng.choice([0.0, 0.5]),
        'stop': rng.choice([[], ['.'], ['\n', 'the']]),
        'n': rng.choice([1, 1, 2]),
        **({'logprobs': True, 'top_logprobs': 3} if rng.random() < 0.3 else {}),
    }

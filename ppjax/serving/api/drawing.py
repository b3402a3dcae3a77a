"""How a request wants its tokens drawn: the fields of many clients, one `Sampling`.

OpenAI's names and defaults; beside them those of vLLM, llama.cpp, KoboldCpp and
text-generation-webui for what OpenAI does not have.
"""

import json
import secrets
from typing import Any

from ppjax.serving import sampling as sampling_lib
from ppjax.serving.api import fields as fields_lib
from ppjax.serving.api import problems, texts

_SEEDS = 2**32
_MOST_BREAKERS = 32
_LONGEST_BREAKER = 64
# What llama.cpp takes where a client names none.
_BREAKERS = ('\n', ':', '"', '*')
# Takes a token out; finite, for it is added to others.
_BANNED = -1e9


def sampling(fields: fields_lib.Fields, own: texts.Texts) -> sampling_lib.Sampling:
    """Reads the fields that say how tokens are drawn.

    Args:
        fields: of the request.
        own: of the base model.

    Raises:
        ApiError: naming a field that is wrong.
    """
    top_k = fields.whole('top_k', least=-1, most=2**31)
    top_p = fields.number('top_p', default=1.0, least=0, most=1)
    return sampling_lib.Sampling(
        bias=_bias(fields, own),
        repetition_penalty=fields.number(
            'repetition_penalty',
            'repeat_penalty',
            'rep_pen',
            default=1.0,
            least=0,
            most=10,
            above=True,
        ),
        frequency_penalty=fields.number(
            'frequency_penalty', default=0.0, least=-2, most=2
        ),
        presence_penalty=fields.number(
            'presence_penalty', default=0.0, least=-2, most=2
        ),
        dry=_dry(fields, own),
        temperature=fields.number('temperature', default=1.0, least=0, most=100),
        min_p=fields.number('min_p', default=0.0, least=0, most=1),
        # Of all there are, and of more, nothing is left out.
        top_k=top_k if top_k is not None and 0 < top_k < own.vocab_size else None,
        # Of none at all the likeliest is left.
        top_p=max(top_p, 1e-6),
        xtc_probability=fields.number('xtc_probability', default=0.0, least=0, most=1),
        xtc_threshold=fields.number('xtc_threshold', default=0.1, least=0, most=1),
        seed=_seed(fields),
    )


def _seed(fields: fields_lib.Fields) -> int:
    """Fixed by the client, or fresh; -1 is how some say that they give none."""
    given = fields.whole('seed', 'sampler_seed', least=-(2**63), most=2**64 - 1)
    if given is None or given == -1:
        return secrets.randbelow(_SEEDS)
    return given % _SEEDS


def _bias(fields: fields_lib.Fields, own: texts.Texts) -> dict[int, float]:
    found: dict[int, float] = {}
    name, given = fields.find('logit_bias')
    pairs: list[Any] = []
    if isinstance(given, dict):
        pairs = list(given.items())
    elif isinstance(given, list):
        pairs = given
    elif given is not None:
        raise problems.wrong(name, f'{name!r} must be an object.')
    most = sampling_lib.MOST_BIASED
    if len(pairs) > most:  # Before they are looked at.
        raise problems.wrong(name, f'{name!r} has more than {most} tokens.')
    for pair in pairs:
        # llama.cpp takes [token or text, bias or false].
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise problems.wrong(name, f'{name!r} must be pairs of a token and a bias.')
        bias = _BANNED if pair[1] is False else pair[1]
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise problems.wrong(name, f'{name!r}: a bias must be a number.')
        if bias != _BANNED and not -100 <= bias <= 100:
            raise problems.wrong(name, f'{name!r}: a bias must be in [-100, 100].')
        for token in _tokens(pair[0], name, own):
            found[token] = float(bias)
    if fields.flag('ignore_eos', 'ban_eos_token'):
        found |= dict.fromkeys(own.stop_ids, _BANNED)
    if len(found) > most:
        raise problems.wrong(name, f'{name!r} has more than {most} tokens.')
    return found


def _tokens(given: Any, name: str, own: texts.Texts) -> list[int]:
    """The tokens of a bias: one by its number, or those of a text."""
    if isinstance(given, str) and not given.isdecimal():
        text = fields_lib.text_of(given, name)
        return own.tokenizer.encode(text, add_special_tokens=False)
    digits = str(given)
    if isinstance(given, bool) or not digits.isdecimal() or len(digits) > 9:
        raise problems.wrong(name, f'{name!r}: {digits[:40]!r} is no token.')
    token = int(digits)
    if token >= own.vocab_size:
        raise problems.wrong(
            name, f'{name!r}: there is no token {token}; there are {own.vocab_size}.'
        )
    return [token]


def _dry(fields: fields_lib.Fields, own: texts.Texts) -> sampling_lib.Dry:
    multiplier = fields.number('dry_multiplier', default=0.0, least=0, most=100)
    base = fields.number('dry_base', default=1.75, least=0, most=100)
    allowed = fields.whole('dry_allowed_length', least=0, most=2**31)
    last_n = fields.whole('dry_penalty_last_n', least=-1, most=2**31)
    breakers = _breakers(fields)
    if not multiplier:
        return sampling_lib.Dry()
    return sampling_lib.Dry(
        multiplier=multiplier,
        # llama.cpp takes its default for what would reward repetition.
        base=base if base >= 1 else 1.75,
        allowed_length=max(2 if allowed is None else allowed, 1),
        # Frontends send 0 or -1 for the whole context.
        last_n=last_n if last_n is not None and last_n > 0 else None,
        breakers=frozenset().union(*(own.breakers(text) for text in breakers)),
    )


def _breakers(fields: fields_lib.Fields) -> tuple[str, ...]:
    """Strings in a list, in a JSON list as text, or with commas between them."""
    name, given = fields.find('dry_sequence_breakers')
    if given is None:
        return _BREAKERS
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else []
        except (ValueError, RecursionError):
            given = given.split(',')
    if not isinstance(given, list) or len(given) > _MOST_BREAKERS:
        raise problems.wrong(
            name, f'{name!r} must be a list of at most {_MOST_BREAKERS} strings.'
        )
    found = [fields_lib.text_of(text, name) for text in given]
    if any(len(text) > _LONGEST_BREAKER for text in found):
        raise problems.wrong(
            name, f'{name!r}: one has more than {_LONGEST_BREAKER} characters.'
        )
    return tuple(text for text in found if text)

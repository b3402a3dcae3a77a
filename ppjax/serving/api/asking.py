"""Fields that all endpoints for answers have in common."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from ppjax.base import errors
from ppjax.serving import jobs, members, sampling
from ppjax.serving.api import fields as fields_lib
from ppjax.serving.api import problems, running
from ppjax.serving.api import service as service_lib

_MOST_STOPS = 64
_LONGEST_STOP = 512
# Beyond every context; some clients send the largest number they know.
_MOST_TOKENS = 2**53
# What would have to shape the answer's text, and is not done here.
_SHAPES = (
    *('grammar', 'grammar_string', 'json_schema'),
    *('guided_json', 'guided_regex', 'guided_choice', 'guided_grammar'),
    'structured_outputs',
)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What is to be gone on with.

    Attributes:
        ids: one or more prompts.
        param: the field they come from.
    """

    ids: tuple[tuple[int, ...], ...]
    param: str


def member(fields: fields_lib.Fields, service: service_lib.Service) -> members.Member:
    """Who is asked; the base model where nobody is named, as vLLM has it.

    Raises:
        ApiError: if there is no such model.
    """
    return service.member(fields.text('model') or None)


def refuse_shapes(fields: fields_lib.Fields) -> None:
    """Refuses what asks for an answer of a certain form.

    An answer without it would look as if it had it.

    Raises:
        ApiError: naming the field.
    """
    shape = fields.table('response_format').text('type')
    if shape not in (None, 'text'):
        raise problems.wrong(
            'response_format', f"'response_format' of type {shape!r} is not offered."
        )
    for name in _SHAPES:
        if fields.is_given(name):
            raise problems.wrong(name, f'{name!r} is not offered.')
    _, choice = fields.find('tool_choice')
    if choice not in (None, 'none', 'auto'):
        raise problems.wrong('tool_choice', 'Calling tools is not offered.')


def n_of(fields: fields_lib.Fields, service: service_lib.Service, prompts: int) -> int:
    """How many answers each prompt has.

    Raises:
        ApiError: if there are too many in all.
    """
    most = service.limits.choices
    if prompts > most:
        raise problems.wrong(
            'prompt', f'{prompts} prompts at once; there may be {most}.'
        )
    n = fields.whole('n', least=1, most=most // prompts)
    return 1 if n is None else n


def max_tokens(
    fields: fields_lib.Fields, *names: str, default: int, unlimited: bool = False
) -> int:
    """The longest answer; more than there is room for is cut by the engine.

    Args:
        fields: of the request.
        names: that it may have.
        default: where it has none.
        unlimited: whether -1 means as much as there is room for.
    """
    given = fields.whole(*names, least=-1 if unlimited else 1, most=_MOST_TOKENS)
    if given is None:
        return default
    if given == 0:
        raise problems.wrong(names[0], f'{names[0]!r} must be at least 1.')
    return _MOST_TOKENS if given == -1 else given


def asked(
    fields: fields_lib.Fields,
    service: service_lib.Service,
    who: members.Member,
    prompts: Prompts,
    *,
    n: int,
    tokens: int,
    draws: sampling.Sampling,
    top_logprobs: int | None,
) -> running.Asked:
    """All that was asked for.

    Args:
        fields: of the request.
        service: that answers.
        who: answers.
        prompts: to go on with.
        n: answers to each.
        tokens: of an answer at most.
        draws: how its tokens are drawn.
        top_logprobs: see `jobs.Job`.

    Raises:
        ApiError: naming a field that is wrong, or if a prompt is too long.
    """
    most = service.engine.max_context
    for prompt in prompts.ids:
        if not prompt:
            raise problems.wrong(prompts.param, 'The prompt has no tokens.')
        if len(prompt) >= most:
            raise problems.too_long(prompts.param, len(prompt), most)
    stop_ids = service.texts.stop_ids | _stop_token_ids(fields, service)
    stream = fields.flag('stream')
    options = fields.table('stream_options')
    if fields.is_given('stream_options') and not stream:
        raise problems.wrong(
            'stream_options', "'stream_options' is for requests with 'stream'."
        )
    return running.Asked(
        member=who,
        jobs=tuple(
            jobs.Job(
                member=who,
                prompt=prompt,
                max_tokens=min(tokens, most - len(prompt)),
                stop_ids=stop_ids,
                sampling=draws,
                choice=choice,
                top_logprobs=top_logprobs,
            )
            for prompt in prompts.ids
            for choice in range(n)
        ),
        n=n,
        stop_strings=fields.texts(
            *('stop', 'stopping_strings', 'stop_sequence'),
            most=_MOST_STOPS,
            longest=_LONGEST_STOP,
        ),
        stream=stream,
        include_usage=options.flag('include_usage'),
        param=prompts.param,
    )


def _stop_token_ids(
    fields: fields_lib.Fields, service: service_lib.Service
) -> frozenset[int]:
    name, given = fields.find('stop_token_ids')
    return frozenset([] if given is None else token_ids(given, name, service))


def token_ids(given: Any, name: str, service: service_lib.Service) -> tuple[int, ...]:
    """Tokens that a client sent as numbers.

    Raises:
        ApiError: if it is no list of tokens that the model has.
    """
    if not isinstance(given, list) or not all(type(token) is int for token in given):
        raise problems.wrong(name, f'{name!r} must be a list of tokens.')
    try:
        return service.texts.known(given)
    except errors.InputError as error:
        raise problems.wrong(name, str(error)) from None


def is_ids(value: Any) -> bool:
    """Whether a value is a list of token ids, not an empty one."""
    return isinstance(value, list) and bool(value) and type(value[0]) is int


def ids_of_texts(
    given: Sequence[Any], name: str, service: service_lib.Service, *, begins: bool
) -> list[tuple[int, ...]]:
    """Tokens of prompts, each a text or a list of token ids.

    Raises:
        ApiError: if one is neither.
    """
    found = []
    for prompt in given:
        if isinstance(prompt, list):
            found.append(token_ids(prompt, name, service))
            continue
        text = fields_lib.text_of(prompt, name)
        try:
            found.append(service.texts.prompt(text, begins=begins))
        except errors.InputError as error:
            raise problems.wrong(name, str(error)) from None
    return found

"""Texts and tokens by themselves: for clients that count, and render, on their own.

The forms of llama.cpp (`content`), vLLM (`prompt` or `messages`) and KoboldCpp.
"""

from typing import Any

from starlette import requests, responses

from ppjax.base import errors
from ppjax.serving.api import asking, bodies, chat_completions, problems
from ppjax.serving.api import fields as fields_lib
from ppjax.serving.api import service as service_lib


async def tokenize(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """A text's tokens, or those of a chat up to the answer.

    Raises:
        ApiError: if neither is given.
    """
    fields = await bodies.read(request, service.limits.body)
    return problems.answer(await service.aside(_tokenized, fields, service))


def _tokenized(
    fields: fields_lib.Fields, service: service_lib.Service
) -> dict[str, Any]:
    if fields.find('messages')[1] is not None:
        who = asking.member(fields, service)
        own = chat_completions.messages(fields, service)
        ids = chat_completions.prompt(own, who, service)
    else:
        # llama.cpp puts nothing before a text unless it is told to, vLLM does.
        name, given = fields.find('content', 'prompt')
        begins = fields.flag(
            *('add_special', 'add_special_tokens'), default=name == 'prompt'
        )
        ids = _prompt(given, name, service, begins=begins)
    return {
        'tokens': _in_pieces(ids, service) if fields.flag('with_pieces') else list(ids),
        'count': len(ids),
        'max_model_len': service.engine.max_context,
    }


def _prompt(
    given: Any, name: str, service: service_lib.Service, *, begins: bool
) -> tuple[int, ...]:
    text = fields_lib.text_of(given, name)
    try:
        return service.texts.prompt(text, begins=begins)
    except errors.InputError as error:
        raise problems.wrong(name, str(error)) from None


def _in_pieces(
    ids: tuple[int, ...], service: service_lib.Service
) -> list[dict[str, Any]]:
    """Each with its text, or its bytes where these are no text."""
    found: list[dict[str, Any]] = []
    for token in ids:
        content = service.texts.content(token)
        try:
            found.append({'id': token, 'piece': content.decode()})
        except UnicodeDecodeError:
            found.append({'id': token, 'piece': list(content)})
    return found


async def detokenize(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """The text of tokens, special ones spelled.

    Raises:
        ApiError: if one is none of the model's.
    """
    fields = await bodies.read(request, service.limits.body)
    name, given = fields.find('tokens', 'ids')
    ids = asking.token_ids(given, name, service)
    text = await service.aside(service.texts.text, ids, special=True)
    return problems.answer({'content': text, 'prompt': text})


async def apply_template(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """A chat as the model reads it, its persona's own messages among it.

    Raises:
        ApiError: as a chat completion does.
    """
    fields = await bodies.read(request, service.limits.body)
    return problems.answer({'prompt': await service.aside(_rendered, fields, service)})


def _rendered(fields: fields_lib.Fields, service: service_lib.Service) -> str:
    who = asking.member(fields, service)
    own = chat_completions.messages(fields, service)
    try:
        return service.texts.chat_text(service.converse(who, own))
    except errors.InputError as error:
        raise problems.wrong('messages', str(error)) from None


async def count(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """KoboldCpp's way to count a text's tokens.

    Raises:
        ApiError: if there is none.
    """
    fields = await bodies.read(request, service.limits.body)
    name, given = fields.find('prompt')
    ids = await service.aside(_prompt, given, name, service, begins=True)
    return problems.answer({'value': len(ids), 'ids': list(ids)})

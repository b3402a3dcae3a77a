"""`/v1/chat/completions`: a conversation, and what its persona says next."""

from collections.abc import Iterator
import secrets
import time
from typing import Any

from starlette import requests, responses

from ppjax.base import errors
from ppjax.serving import jobs, members
from ppjax.serving.api import (
    answering,
    asking,
    choices,
    drawing,
    logprobs,
    problems,
    running,
)
from ppjax.serving.api import fields as fields_lib
from ppjax.serving.api import service as service_lib

_ROLES = {
    'system': 'system',
    'developer': 'system',
    'user': 'user',
    'assistant': 'assistant',
}


async def complete(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Answers a chat.

    Raises:
        ApiError: if the request is refused, or the answer broke off.
    """
    _, asked = await answering.read(request, service, _asked)
    return await answering.answer(request, service, asked, _Form(service, asked))


def _asked(fields: fields_lib.Fields, service: service_lib.Service) -> running.Asked:
    who = asking.member(fields, service)
    asking.refuse_shapes(fields)
    own = messages(fields, service)
    return asking.asked(
        fields,
        service,
        who,
        asking.Prompts((prompt(own, who, service),), 'messages'),
        n=asking.n_of(fields, service, 1),
        tokens=asking.max_tokens(
            fields,
            *('max_completion_tokens', 'max_tokens'),
            default=service.limits.max_tokens,
        ),
        draws=drawing.sampling(fields, service.texts),
        top_logprobs=_top_logprobs(fields),
    )


def _top_logprobs(fields: fields_lib.Fields) -> int | None:
    top = fields.whole('top_logprobs', least=0, most=jobs.MOST_LOGPROBS)
    if fields.flag('logprobs'):
        return top or 0
    if top:
        raise problems.wrong('top_logprobs', "'top_logprobs' needs 'logprobs': true.")
    return None


def messages(
    fields: fields_lib.Fields, service: service_lib.Service
) -> list[service_lib.Message]:
    """The messages of a request, their texts joined where they come in parts.

    Raises:
        ApiError: naming the message that is none.
    """
    name, given = fields.find('messages')
    if not isinstance(given, list) or not given:
        raise problems.wrong(name, "'messages' must be a list of one message or more.")
    if len(given) > service.limits.messages:
        raise problems.wrong(
            name, f'{len(given)} messages; there may be {service.limits.messages}.'
        )
    found = []
    for number, message in enumerate(given):
        where = f'messages[{number}]'
        if not isinstance(message, dict):
            raise problems.wrong(where, f'{where} must be an object.')
        role = message.get('role')
        if not isinstance(role, str) or role not in _ROLES:
            raise problems.wrong(
                f'{where}.role', f'{where}.role must be one of {", ".join(_ROLES)}.'
            )
        text = _content(message.get('content'), role, f'{where}.content')
        found.append({'role': _ROLES[role], 'content': text})
    return found


def _content(given: Any, role: str, where: str) -> str:
    if given is None and role == 'assistant':  # It called a tool.
        return ''
    if not isinstance(given, list):
        return fields_lib.text_of(given, where)
    texts = []
    for part in given:
        kind = part.get('type') if isinstance(part, dict) else None
        if kind not in ('text', 'input_text'):
            raise problems.wrong(where, f'{where} may hold parts of type text alone.')
        texts.append(fields_lib.text_of(part.get('text'), f'{where}.text'))
    return ''.join(texts)


def prompt(
    own: list[service_lib.Message],
    who: members.Member,
    service: service_lib.Service,
) -> tuple[int, ...]:
    """Tokens of a conversation with somebody, up to the answer.

    Raises:
        ApiError: if a message holds the model's markup, or the chat template refuses.
    """
    try:
        return service.texts.chat_prompt(service.converse(who, own))
    except errors.InputError as error:
        raise problems.wrong('messages', str(error)) from None


class _Form:
    """Chat completions, whole and in chunks."""

    says_done = True

    def __init__(self, service: service_lib.Service, asked: running.Asked):
        self._texts = service.texts
        self._wants_logprobs = asked.jobs[0].top_logprobs is not None
        self._include_usage = asked.include_usage
        self._head = {
            'id': f'chatcmpl-{secrets.token_hex(12)}',
            'created': int(time.time()),
            'model': asked.member.name,
            'system_fingerprint': asked.member.digest[:16] or None,
        }

    def whole(self, running: running.Running) -> dict[str, Any]:
        return self._head | {
            'object': 'chat.completion',
            'choices': [
                {
                    'index': index,
                    'message': {
                        'role': 'assistant',
                        'content': answer.text,
                        'refusal': None,
                    },
                    'logprobs': self._logprobs(answer.tokens),
                    'finish_reason': answer.ended.reason,
                }
                for index, answer in enumerate(running.answers)
            ],
            'usage': running.usage(),
        }

    def _logprobs(self, tokens: tuple[jobs.Token, ...]) -> dict[str, Any] | None:
        return logprobs.chat(self._texts, tokens) if self._wants_logprobs else None

    def _chunk(self, *listed: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head | {
            'object': 'chat.completion.chunk',
            'choices': list(listed),
        }
        return chunk | {'usage': None} if self._include_usage else chunk

    def opening(self, running: running.Running) -> Iterator[dict[str, Any]]:
        for index in range(len(running.answers)):
            yield self._chunk(
                _delta(index, {'role': 'assistant', 'content': ''}),
            )

    def piece(
        self, running: running.Running, update: choices.Update
    ) -> Iterator[dict[str, Any]]:
        del running
        if update.text or update.tokens:
            yield self._chunk(
                _delta(update.choice, {'content': update.text})
                | {'logprobs': self._logprobs(update.tokens)}
            )
        if update.finish:
            yield self._chunk(
                _delta(update.choice, {}) | {'finish_reason': update.finish.reason}
            )

    def closing(self, running: running.Running) -> Iterator[dict[str, Any]]:
        if self._include_usage:
            yield self._chunk() | {'usage': running.usage()}


def _delta(index: int, delta: dict[str, str]) -> dict[str, Any]:
    return {'index': index, 'delta': delta, 'logprobs': None, 'finish_reason': None}

"""`/v1/completions`: texts or tokens, and how a model goes on with them.

Prompts are taken as they are, with the model's own markup read as such: clients send
conversations here that they have rendered themselves. `echo` sends a prompt back
before its answer; with `logprobs` it is refused, for those of prompts are not known.
`suffix` is refused.
"""

from collections.abc import Iterator
import secrets
import time
from typing import Any

from starlette import requests, responses

from ppjax.serving import jobs
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

# Where the client says none, as OpenAI has it.
_MAX_TOKENS = 16


async def complete(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Goes on with texts.

    Raises:
        ApiError: if the request is refused, or an answer broke off.
    """
    fields, asked = await answering.read(request, service, _asked)
    echoed = (
        await service.aside(_echoed, asked, service) if fields.flag('echo') else None
    )
    form = _Form(service, asked, echoed)
    return await answering.answer(request, service, asked, form)


def _asked(fields: fields_lib.Fields, service: service_lib.Service) -> running.Asked:
    who = asking.member(fields, service)
    asking.refuse_shapes(fields)
    if fields.is_given('suffix'):
        raise problems.wrong('suffix', "'suffix' is not offered.")
    top = fields.whole('logprobs', least=0, most=jobs.MOST_LOGPROBS)
    if top is not None and fields.flag('echo'):
        raise problems.wrong('echo', "'echo' is not offered with 'logprobs'.")
    prompts = _prompts(fields, service)
    n = asking.n_of(fields, service, len(prompts.ids))
    best_of = fields.whole('best_of', least=0, most=2**31)
    if best_of and best_of != n:
        raise problems.wrong('best_of', "'best_of' is offered only equal to 'n'.")
    return asking.asked(
        fields,
        service,
        who,
        prompts,
        n=n,
        tokens=asking.max_tokens(
            fields,
            *('max_tokens', 'max_completion_tokens', 'max_new_tokens', 'n_predict'),
            default=_MAX_TOKENS,
        ),
        draws=drawing.sampling(fields, service.texts),
        top_logprobs=top,
    )


def _prompts(fields: fields_lib.Fields, service: service_lib.Service) -> asking.Prompts:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    name, given = fields.find('prompt')
    if given is None or given == []:
        raise problems.wrong(name, "'prompt' must be given.")
    several = isinstance(given, list) and not asking.is_ids(given)
    listed = given if several else [given]
    # Before the work: there may be many.
    asking.n_of(fields, service, len(listed))
    begins = fields.flag('add_special_tokens', 'add_bos_token', default=True)
    return asking.Prompts(
        tuple(asking.ids_of_texts(listed, name, service, begins=begins)), name
    )


def _echoed(asked: running.Asked, service: service_lib.Service) -> list[str]:
    """The prompt before each answer."""
    return [service.texts.text(job.prompt) for job in asked.jobs]


class _Form:
    """Text completions, whole and in chunks."""

    says_done = True

    def __init__(
        self,
        service: service_lib.Service,
        asked: running.Asked,
        echoed: list[str] | None,
    ):
        self._texts = service.texts
        self._wants_logprobs = asked.jobs[0].top_logprobs is not None
        self._include_usage = asked.include_usage
        self._echoed = echoed
        self._head = {
            'id': f'cmpl-{secrets.token_hex(12)}',
            'object': 'text_completion',
            'created': int(time.time()),
            'model': asked.member.name,
            'system_fingerprint': asked.member.digest[:16] or None,
        }

    def _choice(
        self,
        index: int,
        text: str,
        tokens: tuple[jobs.Token, ...] = (),
        offset: int = 0,
        finish: choices.Finish | None = None,
    ) -> dict[str, Any]:
        shown = None
        if self._wants_logprobs:
            shown = logprobs.completion(self._texts, tokens, offset)
        return {
            'index': index,
            'text': text,
            'logprobs': shown,
            'finish_reason': finish.reason if finish else None,
        }

    def whole(self, running: running.Running) -> dict[str, Any]:
        echoed = self._echoed or [''] * len(running.answers)
        return self._head | {
            'choices': [
                self._choice(
                    index,
                    echoed[index] + answer.text,
                    answer.tokens,
                    finish=answer.ended,
                )
                for index, answer in enumerate(running.answers)
            ],
            'usage': running.usage(),
        }

    def _chunk(self, *listed: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head | {'choices': list(listed)}
        return chunk | {'usage': None} if self._include_usage else chunk

    def opening(self, running: running.Running) -> Iterator[dict[str, Any]]:
        del running
        for index, text in enumerate(self._echoed or ()):
            yield self._chunk(self._choice(index, text))

    def piece(
        self, running: running.Running, update: choices.Update
    ) -> Iterator[dict[str, Any]]:
        del running
        yield self._chunk(
            self._choice(
                update.choice, update.text, update.tokens, update.offset, update.finish
            )
        )

    def closing(self, running: running.Running) -> Iterator[dict[str, Any]]:
        if self._include_usage:
            yield self._chunk() | {'usage': running.usage()}

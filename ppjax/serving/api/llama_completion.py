"""`/completion`, as llama.cpp's server has it: one prompt, one answer.

Source: llama.cpp, tools/server/README.md. Of its samplers those that `drawing` knows
are applied, in `sampling.Sampling`'s order and with OpenAI's defaults; the others are
ignored.
"""

from collections.abc import Iterator
from typing import Any

from starlette import requests, responses

from ppjax.base import errors
from ppjax.serving import jobs, sampling
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

_STOP_TYPES = {'token': 'eos', 'string': 'word', 'length': 'limit'}


async def complete(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Goes on with a prompt.

    Raises:
        ApiError: if the request is refused, or the answer broke off.
    """
    _, asked = await answering.read(request, service, _asked)
    form = _Form(service, asked)
    return await answering.answer(request, service, asked, form)


def _asked(fields: fields_lib.Fields, service: service_lib.Service) -> running.Asked:
    who = asking.member(fields, service)
    asking.refuse_shapes(fields)
    top = fields.whole('n_probs', 'logprobs', least=0, most=jobs.MOST_LOGPROBS)
    return asking.asked(
        fields,
        service,
        who,
        asking.Prompts((_prompt(fields, service),), 'prompt'),
        n=1,
        tokens=asking.max_tokens(
            fields,
            *('n_predict', 'max_tokens'),
            default=service.limits.max_tokens,
            unlimited=True,
        ),
        draws=drawing.sampling(fields, service.texts),
        top_logprobs=top or None,
    )


def _prompt(fields: fields_lib.Fields, service: service_lib.Service) -> tuple[int, ...]:
    """A text, a list of token ids, or a list of both that make up one prompt."""
    name, given = fields.find('prompt')
    if given is None:
        raise problems.wrong(name, "'prompt' must be given.")
    parts = given if isinstance(given, list) else [given]
    if len(parts) > 1 and not any(type(part) is int for part in parts):
        raise problems.wrong(name, "'prompt': one prompt a request.")
    found: list[int] = []
    for place, part in enumerate(parts):
        if type(part) is int:
            found += asking.token_ids([part], name, service)
            continue
        text = fields_lib.text_of(part, name)
        try:
            found += service.texts.prompt(text, begins=place == 0)
        except errors.InputError as error:
            raise problems.wrong(name, str(error)) from None
    return tuple(found)


class _Form:
    """llama.cpp's answers, whole and in pieces."""

    says_done = False

    def __init__(self, service: service_lib.Service, asked: running.Asked):
        self._texts = service.texts
        self._asked = asked
        [self._job] = asked.jobs

    def _probabilities(self, tokens: tuple[jobs.Token, ...]) -> dict[str, Any]:
        if self._job.top_logprobs is None:
            return {}
        return {'completion_probabilities': logprobs.llama(self._texts, tokens)}

    def whole(self, running: running.Running) -> dict[str, Any]:
        [answer] = running.answers
        return self._last(answer.text, answer.ended) | self._probabilities(
            answer.tokens
        )

    def _last(self, text: str, finish: choices.Finish) -> dict[str, Any]:
        draws = self._job.sampling
        return {
            'index': 0,
            'content': text,
            'tokens': [],
            'id_slot': -1,
            'stop': True,
            'model': self._asked.member.name,
            'tokens_predicted': finish.tokens,
            'tokens_evaluated': len(self._job.prompt),
            'generation_settings': settings(draws)
            | {
                'n_predict': self._job.max_tokens,
                'max_tokens': self._job.max_tokens,
                'stop': list(self._asked.stop_strings),
                'stream': self._asked.stream,
                'n_probs': self._job.top_logprobs or 0,
            },
            'prompt': self._texts.text(self._job.prompt, special=True),
            'has_new_line': '\n' in text,
            'truncated': False,
            'stop_type': _STOP_TYPES[finish.by],
            'stopping_word': finish.stop,
            'tokens_cached': finish.cached_tokens,
            'timings': _timings(len(self._job.prompt), finish),
        }

    def opening(self, running: running.Running) -> Iterator[dict[str, Any]]:
        del running
        return iter(())

    def piece(
        self, running: running.Running, update: choices.Update
    ) -> Iterator[dict[str, Any]]:
        if update.text or update.tokens:
            yield {
                'index': 0,
                'content': update.text,
                'tokens': [],
                'stop': False,
                'id_slot': -1,
                'tokens_predicted': running.count(update.choice),
                'tokens_evaluated': len(self._job.prompt),
            } | self._probabilities(update.tokens)

    def closing(self, running: running.Running) -> Iterator[dict[str, Any]]:
        [answer] = running.answers
        yield self._last('', answer.ended)


def settings(draws: sampling.Sampling) -> dict[str, Any]:
    """How tokens are drawn, by llama.cpp's names.

    Args:
        draws: as they are asked for.
    """
    return {
        'seed': draws.seed,
        'temperature': draws.temperature,
        'top_k': draws.top_k or 0,
        'top_p': draws.top_p,
        'min_p': draws.min_p,
        'xtc_probability': draws.xtc_probability,
        'xtc_threshold': draws.xtc_threshold,
        'repeat_penalty': draws.repetition_penalty,
        'frequency_penalty': draws.frequency_penalty,
        'presence_penalty': draws.presence_penalty,
        'dry_multiplier': draws.dry.multiplier,
        'dry_base': draws.dry.base,
        'dry_allowed_length': draws.dry.allowed_length,
        'dry_penalty_last_n': draws.dry.last_n or -1,
    }


def _timings(prompt: int, finish: choices.Finish) -> dict[str, float]:
    """In milliseconds; the first token is the prompt's work."""
    read = prompt - finish.cached_tokens
    reading = finish.first_seconds * 1e3
    drawing_ms = (finish.seconds - finish.first_seconds) * 1e3
    steps = max(finish.tokens - 1, 0)
    return {
        'cache_n': finish.cached_tokens,
        'prompt_n': read,
        'prompt_ms': reading,
        'prompt_per_token_ms': reading / max(read, 1),
        'prompt_per_second': 1e3 * read / reading if reading else 0.0,
        'predicted_n': finish.tokens,
        'predicted_ms': drawing_ms,
        'predicted_per_token_ms': drawing_ms / max(steps, 1),
        'predicted_per_second': 1e3 * steps / drawing_ms if drawing_ms else 0.0,
    }

"""How the server is: `/health`, `/props`, `/metrics`."""

import asyncio
import pathlib

from starlette import requests, responses

import ppjax
from ppjax.serving import sampling
from ppjax.serving.api import llama_completion, metrics, problems
from ppjax.serving.api import service as service_lib


async def health(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Whether requests are taken.

    Raises:
        ApiError: if none is any more.
    """
    del request
    service.refuse_if_draining()
    return problems.answer({'status': 'ok'})


async def props(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """What llama.cpp's server says of itself, as far as frontends read it."""
    del request
    tokenizer = service.texts.tokenizer
    settings = llama_completion.settings(sampling.Sampling())
    # Each answer has a fresh one.
    settings['seed'] = -1
    context = service.engine.max_context
    return problems.answer(
        {
            'default_generation_settings': {
                'n_ctx': context,
                'params': settings | {'n_predict': service.limits.max_tokens},
                **settings,
            },
            'total_slots': service.engine.figures().slots,
            'n_ctx': context,
            'model_path': service.base,
            'model_alias': pathlib.Path(service.base).name,
            'chat_template': service.texts.template,
            'bos_token': tokenizer.bos_token or '',
            'eos_token': tokenizer.eos_token or '',
            'modalities': {'vision': False, 'audio': False},
            'build_info': f'ppjax {ppjax.__version__}',
        }
    )


async def prometheus(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """What was measured."""
    del request
    # Of hundreds of personas it takes a sixth of a second.
    text = await asyncio.to_thread(service.metrics.text)
    return responses.Response(text, headers={'Content-Type': metrics.MEDIA_TYPE})

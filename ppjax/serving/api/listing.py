"""Who is served: `/v1/models` for programs, `/cast` for the page."""

from typing import Any
import urllib.parse

from starlette import requests, responses

from ppjax.serving import members
from ppjax.serving.api import problems
from ppjax.serving.api import service as service_lib


def _entry(
    member: members.Member, base: members.Member, service: service_lib.Service
) -> dict[str, Any]:
    """A model, in the form that vLLM has for a base and what is put on it."""
    return {
        'id': member.name,
        'object': 'model',
        'created': member.created,
        'owned_by': 'ppjax',
        'root': str(member.source) if member.source else service.base,
        'parent': None if member.is_dense else base.name,
        'max_model_len': service.engine.max_context,
        'permission': [],
    }


async def models(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """All model ids, the base model first."""
    del request
    found = list(service.cast.members().values())
    return problems.answer(
        {
            'object': 'list',
            'data': [_entry(member, found[0], service) for member in found],
        }
    )


async def model(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """One of them.

    Raises:
        ApiError: if there is no such model.
    """
    member = service.member(request.path_params['name'])
    return problems.answer(_entry(member, service.member(None), service))


async def cast(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Everyone, as the page shows them."""
    del request
    found = list(service.cast.members().values())
    return problems.answer(
        {
            'base': found[0].name,
            'members': [
                {
                    'id': member.name,
                    'title': member.title,
                    'greeting': member.persona.greeting if member.persona else '',
                    'sparsity': member.sparsity,
                    'picture': _picture_path(member),
                    'dense': member.is_dense,
                    # Under which the page asks the base model too.
                    'system': member.system_prompt,
                }
                for member in found
            ],
        }
    )


# What browsers show as pictures and never run; not SVG, which can hold scripts.
_PICTURES = frozenset({'image/png', 'image/gif', 'image/jpeg', 'image/webp'})


def _picture_path(member: members.Member) -> str | None:
    if member.picture is None or member.picture.media_type not in _PICTURES:
        return None
    return f'/cast/{urllib.parse.quote(member.name, safe="")}/picture'


async def picture(
    request: requests.Request, service: service_lib.Service
) -> responses.Response:
    """Somebody's picture.

    Raises:
        ApiError: if there is nobody of that name, or no picture.
    """
    member = service.member(request.path_params['name'])
    found = member.picture
    if found is None or found.media_type not in _PICTURES:
        raise problems.ApiError(404, f'{member.name} has no picture.')
    return responses.Response(
        found.content,
        headers={
            'Cache-Control': 'private, max-age=300',
            'Content-Security-Policy': "default-src 'none'",
            'X-Content-Type-Options': 'nosniff',
        },
        media_type=found.media_type,
    )

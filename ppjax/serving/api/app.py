"""What the server answers, address by address.

OpenAI's addresses, llama.cpp's (some of them without /v1), vLLM's and one of
KoboldCpp's for programs; the page for people.
"""

from collections.abc import Awaitable, Callable
import functools
import traceback

from starlette import (
    applications,
    exceptions,
    requests,
    responses,
    routing,
    types,
)

from ppjax.base import errors, progress
from ppjax.serving.api import (
    access,
    chat_completions,
    listing,
    llama_completion,
    problems,
    state,
    text_completions,
    tokenizing,
)
from ppjax.serving.api import service as service_lib

_Endpoint = Callable[
    [requests.Request, service_lib.Service], Awaitable[responses.Response]
]
_PAGE = {'/': 'index.html', '/chat.css': 'chat.css', '/chat.js': 'chat.js'}
_GET: dict[str, _Endpoint] = {
    '/health': state.health,
    '/v1/health': state.health,
    '/props': state.props,
    '/metrics': state.prometheus,
    '/v1/models': listing.models,
    '/models': listing.models,
    '/v1/models/{name:path}': listing.model,
    '/cast': listing.cast,
    '/cast/{name:path}/picture': listing.picture,
}
_POST: dict[str, _Endpoint] = {
    '/v1/chat/completions': chat_completions.complete,
    '/chat/completions': chat_completions.complete,
    '/v1/completions': text_completions.complete,
    '/completion': llama_completion.complete,
    '/completions': llama_completion.complete,
    '/tokenize': tokenizing.tokenize,
    '/detokenize': tokenizing.detokenize,
    '/apply-template': tokenizing.apply_template,
    '/api/extra/tokencount': tokenizing.count,
}


def application(
    service: service_lib.Service,
    *,
    key: str | None = None,
    origins: frozenset[str] = frozenset(),
) -> types.ASGIApp:
    """All of it, behind its door.

    Args:
        service: what is served.
        key: that is demanded; see `access.checked_key`.
        origins: of other pages that may ask.
    """
    routes = [
        routing.Route(path, _answered(endpoint, service), methods=[method])
        for method, endpoints in (('GET', _GET), ('POST', _POST))
        for path, endpoint in endpoints.items()
    ]
    for path, name in _PAGE.items():
        endpoint = _answered(functools.partial(_file, name), service)
        routes.append(routing.Route(path, endpoint, methods=['GET']))
    app = applications.Starlette(
        routes=routes,
        exception_handlers={
            exceptions.HTTPException: functools.partial(_no_such, service)
        },
    )
    # An address with a slash too many is none: clients do not post again.
    app.router.redirect_slashes = False
    return access.Access(app, key=key, origins=origins)


async def _file(
    name: str, request: requests.Request, service: service_lib.Service
) -> responses.Response:
    del request
    kind, content = service.page.read(name)
    headers = {**service.page.headers, 'Content-Type': kind}
    return responses.Response(content, headers=headers)


def _answered(
    endpoint: _Endpoint, service: service_lib.Service
) -> Callable[[requests.Request], Awaitable[responses.Response]]:
    """An endpoint, whatever goes wrong in it."""

    async def answered(request: requests.Request) -> responses.Response:
        try:
            return await endpoint(request, service)
        except problems.ApiError as error:
            found = error
        except requests.ClientDisconnect:
            return responses.Response(status_code=499)
        except errors.InputError as error:
            found = problems.ApiError(400, str(error))
        except Exception as error:  # noqa: BLE001  None may be another request's.
            progress.say(f'{request.method} {request.url.path}: {_where(error)}')
            found = problems.failed('The server made a mistake with this request.')
        service.metrics.refused(found.status)
        return found.response()

    return answered


def _where(error: Exception) -> str:
    """Its kind and place; its words may hold what the client wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f'{frame.filename}:{frame.lineno}' for frame in frames[-3:]]
    return f'{type(error).__name__} at {" < ".join(reversed(places))}'


async def _no_such(
    service: service_lib.Service, request: requests.Request, error: Exception
) -> responses.Response:
    assert isinstance(error, exceptions.HTTPException)
    service.metrics.refused(error.status_code)
    said = f'{request.method} {request.url.path} is none of the addresses here.'
    headers = dict(error.headers or {})
    return problems.ApiError(
        error.status_code, said, code='not_found', headers=headers
    ).response()

"""What is wrong with a request, in the form that OpenAI's clients read."""

import json
from typing import Any

from starlette import responses

from ppjax.base import errors

# Seconds; a row may be free by then.
_QUEUE_AGAIN = 1
# A server that is started anew has loaded its model by then.
_DRAINED_AGAIN = 10


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        message: one sentence or two, for people.
        param: the field that is wrong; None where none is.
        code: a word for programs; None for none.
        kind: OpenAI's class of errors.
        headers: to be sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = 'invalid_request_error',
        headers: dict[str, str] | None = None,
    ):
        self.message = errors.one_line(message)
        super().__init__(self.message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {
            'error': {
                'message': self.message,
                'type': self.kind,
                'param': self.param,
                'code': self.code,
            }
        }

    def response(self) -> responses.Response:
        """As a response of its own."""
        return answer(self.body(), self.status, self.headers)


def dumped(value: Any) -> bytes:
    """JSON in ASCII: what clients sent may hold what UTF-8 cannot."""
    return json.dumps(value, allow_nan=False, separators=(',', ':')).encode()


def answer(
    value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> responses.Response:
    """A JSON response."""
    return responses.Response(dumped(value), status, headers, 'application/json')


def wrong(param: str, message: str, code: str | None = None) -> ApiError:
    """A field has a wrong value."""
    return ApiError(400, message, param=param, code=code)


def no_model(name: str) -> ApiError:
    """A model id that nobody has."""
    return ApiError(
        404,
        f'There is no model {name!r}; GET /v1/models lists them.',
        param='model',
        code='model_not_found',
    )


def too_long(param: str, length: int, most: int) -> ApiError:
    """A prompt without room for an answer."""
    return wrong(
        param,
        f'The prompt has {length} tokens, and prompt and answer together may have '
        f'{most}; shorten it.',
        'context_length_exceeded',
    )


def queue_full() -> ApiError:
    """Too many wait."""
    return ApiError(
        429,
        'Too many requests are waiting; try again in a moment.',
        code='rate_limit_exceeded',
        kind='rate_limit_error',
        headers={'Retry-After': str(_QUEUE_AGAIN)},
    )


def draining() -> ApiError:
    """The server is about to end."""
    return ApiError(
        503,
        'The server is ending and takes nothing new.',
        code='service_unavailable',
        kind='server_error',
        headers={'Retry-After': str(_DRAINED_AGAIN)},
    )


def failed(message: str) -> ApiError:
    """Not the client's fault."""
    return ApiError(500, message, code='internal_error', kind='server_error')

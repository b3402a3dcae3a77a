"""The body of a request: so long and no longer, and a JSON object."""

import asyncio
import json
from typing import Any, NoReturn

from starlette import requests

from ppjax.serving.api import fields, problems

# For all of it to arrive.
_SECONDS = 60.0
# Else the rest of the body would be read, to no end.
_CLOSES = {'Connection': 'close'}


async def read(request: requests.Request, most: int) -> fields.Fields:
    """The fields of a request.

    Args:
        request: whose body is unread.
        most: bytes that it may have.

    Raises:
        ApiError: if it has more, is no JSON object, or does not come.
        ClientDisconnect: if the client left.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            content = await _content(request, most)
    except TimeoutError:
        raise problems.ApiError(
            408,
            f'The request did not arrive within {_SECONDS:.0f} s.',
            headers=_CLOSES,
        ) from None
    try:
        # Clients of llama.cpp send no content type, or that of a form.
        body: Any = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        # Its words may hold what the client sent.
        where = (
            f' (line {error.lineno}, column {error.colno})'
            if isinstance(error, json.JSONDecodeError)
            else ''
        )
        raise problems.ApiError(400, f'The request is no JSON{where}.') from None
    if not isinstance(body, dict):
        raise problems.ApiError(400, 'The request is no JSON object.')
    return fields.Fields(body)


async def _content(request: requests.Request, most: int) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise problems.ApiError(
                413,
                f'The request is longer than {most} bytes.',
                code='too_large',
                headers=_CLOSES,
            )
    return bytes(content)


def _no_number(spelled: str) -> NoReturn:
    raise ValueError(spelled)

"""Who may ask: the key, pages of other origins, names that point here."""

import hmac
import urllib.parse

from starlette import datastructures, responses, types

from ppjax.base import errors
from ppjax.serving import config
from ppjax.serving.api import problems

KEY_VARIABLE = 'PPJAX_API_KEY'
# Whoever watches whether a server lives has no key, nor has a browser that opens the
# page, which is the same for all and asks for the key itself.
_OPEN = frozenset({'/health', '/v1/health', '/', '/chat.css', '/chat.js'})
_PREFLIGHT = {
    'Access-Control-Allow-Methods': 'GET, POST',
    'Access-Control-Max-Age': '600',
}


def checked_key(key: str | None, cfg: config.ServeConfig) -> str | None:
    """The key that is demanded; None for none.

    Args:
        key: of the environment; None or '' where it has none.
        cfg: says who can reach the server.

    Raises:
        InputError: if there must be one, or it cannot be sent.
    """
    if not key:
        if not cfg.is_local:
            raise errors.InputError(
                f'--host={cfg.host} can be reached from other machines: set '
                f'{KEY_VARIABLE} in the environment to a key that clients must send.'
            )
        if '*' in cfg.origins:
            raise errors.InputError(
                f'--allow_origin=* lets every web page in; set {KEY_VARIABLE} in the '
                'environment, or name the origins.'
            )
        return None
    if not key.isascii() or not key.isprintable() or ' ' in key:
        raise errors.InputError(
            f'{KEY_VARIABLE} must be letters, digits and signs of ASCII, without blanks.'
        )
    return key


class Access:
    """An application behind a door.

    With a key, each request must bring it, as a bearer token. Without one, only names of
    this machine are answered to: else a page elsewhere could have its own name point
    here. Browsers' requests on behalf of other pages are refused, unless they are allowed.
    """

    def __init__(self, app: types.ASGIApp, *, key: str | None, origins: frozenset[str]):
        """Args:
        app: what is behind it.
        key: from `checked_key`.
        origins: of other pages that may come in; '*' for all.
        """
        self._app, self._key, self._origins = app, key, origins

    async def __call__(
        self, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        if scope['type'] != 'http':  # There are no web sockets behind it.
            await self._app(scope, receive, send)
            return
        headers = datastructures.Headers(scope=scope)
        origin = headers.get('origin')
        allowed = origin is not None and not self._origins.isdisjoint((origin, '*'))
        if allowed and origin:
            send = _sharing(send, origin)
            if scope['method'] == 'OPTIONS':
                # OpenAI's client in a page sends a dozen of its own.
                asked = headers.get('access-control-request-headers', '')
                shared = _PREFLIGHT | {'Access-Control-Allow-Headers': asked}
                await responses.Response(status_code=204, headers=shared)(
                    scope, receive, send
                )
                return
        refused = self._refused(scope, headers, allowed)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refused.response()(scope, receive, send)

    def _refused(
        self, scope: types.Scope, headers: datastructures.Headers, allowed: bool
    ) -> problems.ApiError | None:
        host = headers.get('host', '')
        if self._key is None and not config.is_loopback(_name(host)):
            return problems.ApiError(
                403, 'The server answers to names of its own machine alone.'
            )
        origin = headers.get('origin')
        if origin and not (allowed or _is_own(origin, host)):
            return problems.ApiError(
                403, 'Pages of other origins may not ask; see --allow_origin.'
            )
        if self._key is None or scope['path'] in _OPEN or self._has_key(headers):
            return None
        return problems.ApiError(
            401,
            'A key is needed: send the header "Authorization: Bearer KEY".',
            code='invalid_api_key',
            headers={'WWW-Authenticate': 'Bearer'},
        )

    def _has_key(self, headers: datastructures.Headers) -> bool:
        assert self._key is not None
        kind, _, given = headers.get('authorization', '').partition(' ')
        return kind.lower() == 'bearer' and hmac.compare_digest(
            given.strip().encode(), self._key.encode()
        )


def _name(host: str) -> str:
    """A host header without its port."""
    if host.startswith('['):
        return host.partition(']')[0] + ']'
    return host.partition(':')[0]


def _is_own(origin: str, host: str) -> bool:
    """Whether a page comes from this server."""
    try:
        return urllib.parse.urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _sharing(send: types.Send, origin: str) -> types.Send:
    """Sends what a page of that origin may read."""

    async def shared(message: types.Message) -> None:
        if message['type'] == 'http.response.start':
            found = datastructures.MutableHeaders(raw=list(message['headers']))
            found['Access-Control-Allow-Origin'] = origin
            found.add_vary_header('Origin')
            message = {**message, 'headers': found.raw}
        await send(message)

    return shared

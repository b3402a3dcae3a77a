"""Addresses of chat servers."""

import re

import httpx

from ppjax.base import errors
from ppjax.chat_api import replies

_LARGEST_PORT = 65_535


def checked(base_url: str, what: str = 'The server address') -> str:
    """The address that `/chat/completions` and `/embeddings` follow.

    Args:
        base_url: as it was given.
        what: names it in errors.

    Raises:
        InputError: if it is none; nobody is asked.
    """
    try:
        url = httpx.URL(base_url.strip())
        host = url.host  # Decoded, which may fail.
        labels = url.raw_host.decode().removesuffix('.').split('.')
    except (httpx.InvalidURL, UnicodeError) as error:
        raise errors.InputError(
            f'{what} is no URL ({replies.short(str(error))}).'
        ) from None
    if url.userinfo or url.query or url.fragment:
        # Not quoted: a password or key may be in it.
        raise errors.InputError(
            f'{what} may hold no password, query or fragment; put the key into the '
            'environment.'
        )
    if url.port is not None and not 0 < url.port <= _LARGEST_PORT:
        raise errors.InputError(
            f'{what} has port {url.port}; ports are 1 to {_LARGEST_PORT}.'
        )
    # What cannot be in a name of a host, httpx percent-encodes.
    named = all(0 < len(label) < 64 and '%' not in label for label in labels)
    if url.scheme not in ('http', 'https') or not host or not named:
        raise errors.InputError(
            f'{what} must look like http://host:port/v1, got '
            f'{replies.short(repr(base_url))}.'
        )
    base = str(url).rstrip('/')
    for end in ('/chat/completions', '/embeddings'):
        base = base.removesuffix(end)
    # Some services have another version, or a path behind it.
    return base if re.search(r'/v\d\w*(/|$)', base) else f'{base}/v1'

"""A port of this machine that a page is served on."""

import socket

from ppjax.base import errors

_BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections already; to be closed.

    Before anything is begun or a URL is said: neither is to be in vain.

    Args:
        host: address, or name, of this machine.
        port: 0 takes a free one.

    Raises:
        InputError: if the port is in use, or the address is not this machine's.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        made = socket.socket(family, kind, protocol)
        try:
            # A port that a killed server had is free at once.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise errors.InputError(
            f'Cannot serve on --host={host} --port={port}: {reason}. Give another '
            'port, or 0 for a free one.'
        ) from None
    return made


def url(host: str, listening: socket.socket) -> str:
    """Where a browser finds it.

    Args:
        host: as it was asked for.
        listening: from `listen`.
    """
    shown = f'[{host}]' if ':' in host else host
    return f'http://{shown}:{listening.getsockname()[1]}/'

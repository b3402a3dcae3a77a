"""The page on a port of this machine, until somebody ends it."""

import contextlib
import socket

import uvicorn

from ppjax.base import errors, progress
from ppjax.ranking import study
from ppjax.ranking.page import app

# For requests under way when the server is told to end.
_GRACE_SECONDS = 5
_BACKLOG = 128


class _Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, url: str):
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f'Ranking page: {self._url}', flush=True)
            progress.say('Ctrl-C ends it; the same command goes on.')


def serve(opened: study.Study, listening: socket.socket, host: str) -> None:
    """Serves until Ctrl-C; what was sent is in the study's file by then.

    Args:
        opened: a study that has begun.
        listening: see `listen`.
        host: as it was asked for there.
    """
    shown = f'[{host}]' if ':' in host else host
    server = _Server(
        uvicorn.Config(
            app.application(opened),
            # No log of requests: it would hold addresses of participants.
            access_log=False,
            log_level='warning',
            lifespan='off',
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ws='none',
        ),
        f'http://{shown}:{listening.getsockname()[1]}/',
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    people = [one for one in opened.participants() if one.kind == study.PERSON]
    progress.say(f'Ended. {len(people)} people have taken part; see --summary.')


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections already; to be closed.

    Before a study is begun or a URL is said: neither is to be in vain.

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

"""The page on a port of this machine, until somebody ends it."""

import contextlib
import socket

import uvicorn

from ppjax.base import progress
from ppjax.pages import listening as listening_lib
from ppjax.ranking import study
from ppjax.ranking.page import app

# For requests under way when the server is told to end.
_GRACE_SECONDS = 5


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
        listening: from `pages.listening.listen`.
        host: as it was asked for there.
    """
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
        listening_lib.url(host, listening),
    )
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    people = [one for one in opened.participants() if one.kind == study.PERSON]
    progress.say(f'Ended. {len(people)} people have taken part; see --summary.')

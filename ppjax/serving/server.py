"""The server as a process: composed, on a port, ended by a signal."""

from collections.abc import Iterator
import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import NoReturn

import uvicorn

from ppjax.base import interrupts, progress
from ppjax.pages import listening
from ppjax.serving import composing, config
from ppjax.serving.api import access, app
from ppjax.serving.api import service as service_lib

# For what is still being sent when all answers have ended.
_GRACE_SECONDS = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(cfg: config.ServeConfig) -> None:
    """Serves until a signal ends it.

    Raises:
        InputError: if the model, the personas, the port or the key cannot be used.
    """
    key = access.checked_key(os.environ.get(access.KEY_VARIABLE), cfg)
    with contextlib.ExitStack() as stack:
        # Before the model is loaded, which takes long.
        port = stack.enter_context(listening.listen(cfg.host, cfg.port))
        service = stack.enter_context(composing.open_service(cfg))
        run(service, port, cfg, key=key)


def run(
    service: service_lib.Service,
    port: socket.socket,
    cfg: config.ServeConfig,
    *,
    key: str | None,
) -> None:
    """Answers requests until a signal; returns when all is ended.

    Args:
        service: what is served.
        port: from `pages.listening.listen`.
        cfg: who may ask, and for how long answers go on at the end.
        key: that is demanded; None for none.
    """
    server = _Server(
        uvicorn.Config(
            app.application(service, key=key, origins=cfg.origins),
            # No log of requests: who asked whom is nobody's affair.
            access_log=False,
            log_level='warning',
            lifespan='off',
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ws='none',
        ),
        service,
        listening.url(cfg.host, port),
        cfg.drain_seconds,
    )
    try:
        server.run([port])
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Says where it is once it answers; lets answers come to their end.

    The first signal has it refuse what is new and wait for what is under way, the
    second ends the process at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: service_lib.Service,
        url: str,
        drain_seconds: float,
    ):
        super().__init__(config)
        self._service, self._url = service, url
        self._drain_seconds = drain_seconds
        self._end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            personas = sum(
                not member.is_dense for member in self._service.cast.members().values()
            )
            print(
                f'Serving {personas} {"persona" if personas == 1 else "personas"} of '
                f'{self._service.base}: {self._url}',
                flush=True,
            )
            progress.say('Ctrl-C ends it, once answers under way are given.')

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM for its own, where they arrive."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._told) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _told(self, number: int, frame: FrameType | None) -> None:
        """Called between two instructions of the main thread: it only makes notes."""
        del frame
        if self._end is not None:
            _leave(number)
        self._end = time.monotonic() + self._drain_seconds
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Looks, ten times a second, whether it is time to end."""
        if self._end is not None and not self.should_exit:
            if self._service.running and time.monotonic() >= self._end:
                progress.say(
                    f'Requests given up after {self._drain_seconds:g} s: '
                    f'{len(self._service.running)}.'
                )
                self._service.end_all()
                self.should_exit = True
            self.should_exit |= not self._service.running
        return await super().on_tick(counter)


def _leave(number: int) -> NoReturn:
    os.write(2, f'{interrupts.MESSAGE}\n'.encode())
    os._exit(128 + number)

"""The server that a soak starts, and ends."""

from collections.abc import Sequence
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import IO

import httpx

from ppjax.base import errors
from ppjax.benchmarking import serve_load
from soaking import record as record_lib

_POLL_SECONDS = 0.1


class Server:
    """A process that serves, from its start to its end.

    Attributes:
        url: with /v1.
        root: without.
    """

    def __init__(self, command: Sequence[str], log: pathlib.Path):
        port = _free_port()
        self.root = f'http://127.0.0.1:{port}'
        self.url = f'{self.root}/v1'
        self._log = log
        self._is_told = False
        self._output: IO[bytes] = log.open('wb')
        self.process = subprocess.Popen(
            [*command, f'--port={port}'],
            env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self, seconds: float) -> None:
        """Raises:
        InputError: if it ends, or does not answer in time; with its last line.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise errors.InputError(
                    f'The server ended with code {self.process.returncode}: '
                    f'{self.last_line()}'
                )
            try:
                if httpx.get(f'{self.root}/health', timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_SECONDS)
        raise errors.InputError(
            f'The server is not ready after {seconds:.0f} s: {self.last_line()}'
        )

    def last_line(self) -> str:
        """Of what it said."""
        lines = self._log.read_text('utf-8', 'replace').strip().splitlines()
        return lines[-1] if lines else 'it said nothing.'

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def resident_bytes(self) -> int | None:
        """None once it is dead."""
        try:
            return serve_load.resident_bytes(self.process.pid)
        except errors.InputError:
            return None

    def tell_to_end(self) -> None:
        """SIGTERM."""
        self._is_told = True
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float, record: record_lib.Record) -> int | None:
        """Its exit code after SIGTERM, where any but 0 is a fault.

        Returns:
            None if it does not end, which is one too.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            record.fault('does not end', f'SIGTERM, and alive after {seconds:.0f} s')
            return None
        if code and self._is_told:
            record.fault('exit code', f'{code} after SIGTERM: {self.last_line()}')
        return code

    def close(self) -> None:
        """Ends it, if it has not ended."""
        if self.is_alive:
            self.process.kill()
            self.process.wait()
        self._output.close()


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port: int = listening.getsockname()[1]
        return port

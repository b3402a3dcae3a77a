"""llama.cpp's server on a GGUF file, in a process of its own."""

from collections.abc import Iterator
import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from ppjax.base import cores, errors
from ppjax.exporting.gguf import llama_cpp

_AT = 'At '
_END_SECONDS = 20


class Started(NamedTuple):
    """A running server."""

    url: str
    pid: int


@contextlib.contextmanager
def started(file: str, *, slots: int, context: int) -> Iterator[Started]:
    """Serves a file.

    Args:
        file: the one that --files names.
        slots: answers at a time.
        context: tokens of prompt and answer, of each.

    Raises:
        InputError: if there is no llama.cpp, or it does not load the file.
    """
    if not llama_cpp.is_installed():
        raise errors.InputError(
            'llama.cpp is not there; pip install xllamacpp brings it.'
        )
    if not pathlib.Path(file).is_file():
        raise errors.InputError(f'--files: {file} is no file.')
    request = {'file': file, 'slots': slots, 'context': slots * context}
    with tempfile.TemporaryFile('w+', errors='replace') as log:
        child = subprocess.Popen(
            [sys.executable, '-m', __name__, json.dumps(request)],
            env=os.environ
            | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
            | {'CUDA_VISIBLE_DEVICES': ''},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert child.stdin and child.stdout
        try:
            url = next((x for x in child.stdout if x.startswith(_AT)), '')
            if not url:
                log.seek(0)
                raise errors.InputError(
                    f'{file} cannot be run by llama.cpp: {llama_cpp.reason(log.read())}'
                )
            yield Started(url.removeprefix(_AT).strip(), child.pid)
        finally:
            child.stdin.close()  # It ends by itself then.
            try:
                child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


def _serve(file: str, slots: int, context: int) -> None:
    """Serves until nobody holds the standard input any more."""
    llama: Any = importlib.import_module('xllamacpp')
    settings = llama.CommonParams()
    settings.model.path = file
    settings.port = 0
    settings.n_ctx = context
    settings.n_parallel = slots
    settings.n_gpu_layers = 0
    settings.use_jinja = True
    threads = cores.count()
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = llama.Server(settings)
    print(f'{_AT}{server.listening_address}', flush=True)
    sys.stdin.read()


if __name__ == '__main__':
    _serve(**json.loads(sys.argv[1]))
    # What threads of the server do at the end of the interpreter is their own affair.
    os._exit(0)

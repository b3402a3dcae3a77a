"""GGUF files in llama.cpp: how large they are, and how fast they read and answer."""

import importlib
import json
import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import httpx

from ppjax.base import cores, errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config
from ppjax.evaluation import timing
from ppjax.exporting.gguf import llama_cpp

_SECONDS = 900.0
# Ids that every vocabulary has, and that are no special tokens of the families read.
_IDS = range(1000, 30000)


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Every file in turn, round by round, each time in a fresh process.

    Returns:
        By file: bytes on disk, resident bytes with the context that the measurement
        needs, and tokens a second of a random prompt and of an answer, as spreads;
        and the medians as shares of the first file's.

    Raises:
        InputError: if there is no llama.cpp, or it does not load a file.
    """
    if not cfg.files:
        raise errors.InputError('Name GGUF files with --files=FILE,FILE.')
    if not llama_cpp.is_installed():
        raise errors.InputError(
            'llama.cpp is not there; pip install xllamacpp brings it.'
        )
    files = [part.strip() for part in cfg.files.split(',') if part.strip()]
    for file in files:
        if not pathlib.Path(file).is_file():
            raise errors.InputError(f'--files: {file} is no file.')
    found: dict[str, list[dict[str, float]]] = {file: [] for file in files}
    progress = progress_lib.Progress('llama.cpp', cfg.rounds * len(files))
    for done in range(cfg.rounds):
        for number, file in enumerate(files, 1):
            found[file].append(_run(cfg, file))
            progress.update(done * len(files) + number, pathlib.Path(file).name)
    progress.close()
    speeds = {
        file: {key: timing.spread([x[key] for x in own]) for key in own[0]}
        for file, own in found.items()
    }
    sizes = {file: float(pathlib.Path(file).stat().st_size) for file in files}
    first = files[0]

    def shares(file: str) -> dict[str, float]:
        own, other = speeds[file], speeds[first]
        found = {key: own[key]['median'] / other[key]['median'] for key in own}
        return found | {'bytes': sizes[file] / sizes[first]}

    return {
        'llama_cpp': llama_cpp.version(),
        'threads': cores.count(),
        'files': {file: {'bytes': sizes[file]} | speeds[file] for file in files},
        'to_the_first': {file: shares(file) for file in files},
    }


def _run(cfg: config.BenchConfig, file: str) -> dict[str, float]:
    request = json.dumps([file, cfg.prompt_length, cfg.answer_length])
    child = subprocess.run(
        [sys.executable, '-m', __name__, request],
        env=os.environ
        | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        | {'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        errors='replace',
        check=False,
    )
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        raise errors.InputError(
            f'{file} cannot be run by llama.cpp: {llama_cpp.reason(child.stderr)}'
        )
    return json.loads(lines[-1])


def _measured(file: str, prompt: int, answer: int) -> dict[str, float]:
    """Loads a file here, and times its server's second request."""
    llama: Any = importlib.import_module('xllamacpp')
    settings = llama.CommonParams()
    settings.model.path = file
    settings.port = 0
    settings.n_ctx = prompt + answer + 64
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    threads = cores.count()
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = llama.Server(settings)
    client = httpx.Client(base_url=server.listening_address, timeout=_SECONDS)
    rng = random.Random(0)

    def ask(length: int, count: int) -> dict[str, Any]:
        reply = client.post(
            '/completion',
            json={
                'prompt': rng.sample(_IDS, length),
                'n_predict': count,
                'temperature': 0,
                'ignore_eos': True,
                'cache_prompt': False,
            },
        )
        reply.raise_for_status()
        return reply.json()['timings']

    ask(8, 8)
    found = ask(prompt, answer)
    resident = next(
        int(line.split()[1]) * 1024
        for line in pathlib.Path('/proc/self/status').read_text().splitlines()
        if line.startswith('VmRSS')
    )
    return {
        'prompt_tokens_per_s': found['prompt_per_second'],
        'answer_tokens_per_s': found['predicted_per_second'],
        'resident_bytes': float(resident),
    }


if __name__ == '__main__':
    print(json.dumps(_measured(*json.loads(sys.argv[1]))), flush=True)
    # What threads of the server do at the end of the interpreter is their own affair.
    os._exit(0)

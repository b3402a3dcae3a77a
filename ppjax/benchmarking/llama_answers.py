"""Answers of llama.cpp's server to prompts of token ids, several at a time."""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import time
from typing import Any

import httpx
import numpy as np

from ppjax.base import errors
from ppjax.benchmarking import llama_server
from ppjax.evaluation import timing

_SECONDS = 900.0


@contextlib.contextmanager
def answering(
    file: str, rows: int, prompt_length: int, answer_length: int
) -> Iterator[Callable[[np.ndarray, int], timing.Answered]]:
    """A side of `decoding`: greedy answers of one length, a batch of prompts at once.

    A server works on some prompts while it answers others, so a batch is asked twice:
    for one token each, which is the time of the prompts, and for all.

    Args:
        file: GGUF.
        rows: prompts at a time.
        prompt_length: tokens of each.
        answer_length: tokens of every answer, at most.

    Raises:
        InputError: if there is no llama.cpp, or it does not load the file; from a
            call, if the server does not answer.
    """
    context = prompt_length + answer_length + 8  # It keeps some for itself.
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            llama_server.started(file, slots=rows, context=context)
        )
        client = stack.enter_context(
            httpx.Client(base_url=server.url, timeout=_SECONDS)
        )
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(rows))

        def ask(prompt: list[int], tokens: int) -> list[int]:
            request: dict[str, Any] = {
                'prompt': prompt,
                'n_predict': tokens,
                'temperature': 0,
                'ignore_eos': True,
                'cache_prompt': False,
                'return_tokens': True,
            }
            try:
                reply = client.post('/completion', json=request)
                reply.raise_for_status()
                return reply.json()['tokens']
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise errors.InputError(
                    f'llama.cpp does not answer with {file}: {error}'
                ) from error

        def seconds(prompts: np.ndarray, tokens: int) -> tuple[float, list[list[int]]]:
            began = time.perf_counter()
            found = list(pool.map(lambda p: ask(p, tokens), prompts.tolist()))
            return time.perf_counter() - began, found

        def run(prompts: np.ndarray, tokens: int) -> timing.Answered:
            first, _ = seconds(prompts, 1)
            whole, answers = seconds(prompts, tokens)
            return timing.Answered(first, max(whole - first, 1e-9), np.array(answers))

        yield run

"""What llama.cpp makes of a GGUF file, asked in a fresh process.

The package `xllamacpp` carries llama.cpp; its server is asked over HTTP, as people's
programs ask it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import httpx
import numpy as np

from ppjax.base import cores, errors

_PACKAGE = 'xllamacpp'
_SECONDS = 600.0
_SMALL_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Answer:
    """What llama.cpp said.

    Attributes:
        prompt: token ids of the rendered conversation.
        tokens: ids that it went on with, the likeliest each.
        ids: int [T, N], for each of these the likeliest N tokens; of no token at all,
            for the one that is none, T = 1.
        logprobs: float64 [T, N], their log-probabilities.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ids: np.ndarray
    logprobs: np.ndarray


def is_installed() -> bool:
    """Whether llama.cpp is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


def version() -> str:
    """Of the package that carries it."""
    return importlib.metadata.version(_PACKAGE)


def ask(
    file: str | pathlib.Path,
    *,
    messages: Sequence[Mapping[str, str]] = (),
    text: str = '',
    tokens: int,
    likeliest: int,
    context: int,
) -> Answer:
    """Has a file's model go on with a conversation or text.

    Args:
        file: GGUF.
        messages: of a chat, rendered by the file's own template.
        text: to go on with instead.
        tokens: that it may answer with, at most; it may end before.
        likeliest: N.
        context: tokens that prompt and answer may have together.

    Raises:
        InputError: with what llama.cpp said, if it does not load the file.
    """
    request = {
        'file': str(file),
        'messages': list(messages),
        'text': text,
        'tokens': tokens,
        'likeliest': likeliest,
        'context': context,
    }
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = (pathlib.Path(scratch, x) for x in ('ask.json', 'said.npz'))
        asked.write_text(json.dumps(request))
        child = subprocess.run(
            [sys.executable, '-m', __name__, str(asked), str(answered)],
            env=os.environ
            | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
            | {'CUDA_VISIBLE_DEVICES': ''},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace',
            check=False,
        )
        if child.returncode:
            raise errors.InputError(
                f'{file} cannot be loaded by llama.cpp: {reason(child.stderr)}'
            )
        with np.load(answered) as said:
            return Answer(
                tuple(said['prompt'].tolist()),
                tuple(said['tokens'].tolist()),
                said['ids'],
                said['logprobs'],
            )


def reason(log: str) -> str:
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if 'error' in line.lower()]
    return (told or lines or ['it said nothing'])[0]


def _served(request: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the file here and asks its server."""
    llama: Any = importlib.import_module(_PACKAGE)
    settings = llama.CommonParams()
    settings.model.path = request['file']
    settings.port = 0
    settings.n_ctx = request['context']
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.use_jinja = True
    # As in float32: keys and values are kept in half precision otherwise.
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = (
        llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    # They wait for each other busily, which small matrices are not worth.
    is_small = pathlib.Path(request['file']).stat().st_size < _SMALL_BYTES
    threads = 1 if is_small else cores.count()
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = llama.Server(settings)
    client = httpx.Client(base_url=server.listening_address, timeout=_SECONDS)

    def post(path: str, **body: Any) -> Any:
        reply = client.post(path, json=body)
        reply.raise_for_status()
        return reply.json()

    text = request['text']
    if request['messages']:
        text = post(
            '/apply-template',
            messages=request['messages'],
            chat_template_kwargs={'enable_thinking': False},
        )['prompt']
    prompt = post('/tokenize', content=text, add_special=True, parse_special=True)[
        'tokens'
    ]
    greedy = {'temperature': 0, 'samplers': ['temperature'], 'return_tokens': True}
    tokens = post('/completion', prompt=prompt, n_predict=request['tokens'], **greedy)[
        'tokens'
    ]
    # Probabilities are told of tokens that end a character. One that does is forced:
    # what is told are those before any bias.
    [harmless, *_] = post('/tokenize', content='a', add_special=False)['tokens']
    top = []
    for length in range(max(1, len(tokens))):
        said = post(
            '/completion',
            prompt=[*prompt, *tokens[:length]],
            n_predict=1,
            n_probs=request['likeliest'],
            logit_bias=[[harmless, 1e6]],
            **greedy,
        )
        [step] = said['completion_probabilities']
        top.append(sorted(step['top_logprobs'], key=lambda x: x['id']))
    return {
        'prompt': prompt,
        'tokens': tokens,
        'ids': [[own['id'] for own in step] for step in top],
        'logprobs': [[own['logprob'] for own in step] for step in top],
    }


def _child(asked: str, answered: str) -> None:
    request = json.loads(pathlib.Path(asked).read_text())
    said = _served(request)
    whole = ('prompt', 'tokens', 'ids')
    arrays: dict[str, Any] = {
        key: np.asarray(value, np.int64 if key in whole else np.float64)
        for key, value in said.items()
    }
    np.savez(answered, **arrays)
    # What threads of the server do at the end of the interpreter is their own affair.
    os._exit(0)


if __name__ == '__main__':
    _child(*sys.argv[1:])

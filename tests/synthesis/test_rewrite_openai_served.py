"""Rewriting through a real server of models, first plainly, then through a bad line.

`transformers serve` loads a tiny random model from a folder; it knows nothing of this
project, so what it takes and sends is OpenAI's protocol and not our idea of it.
"""

import collections
from collections.abc import Iterator
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.data import instructions as instructions_lib
from ppjax.personas import persona as persona_lib
from ppjax.synthesis import rewrite_log, rewrite_openai, rewriting

for _needed in ('accelerate', 'fastapi', 'openai', 'uvicorn'):
    pytest.importorskip(_needed, reason='transformers serve needs it')

_START_SECONDS = 240  # Of a busy machine; a quiet one takes 10.
_LIMIT = 12
_TEMPLATE = (
    '{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}'
    '{% if add_generation_prompt %}<s>assistant {% endif %}'
)


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A random Llama of one layer whose every token is one byte."""
    path = tmp_path_factory.mktemp('served')
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ['<pad>', '<s>', '</s>']
    vocabulary = {token: number for number, token in enumerate(special + letters)}
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    plain.add_special_tokens(special)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token='<s>', eos_token='</s>', pad_token='<pad>'
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def url(model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running server."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp('log') / 'server.log'
    main = 'from transformers.cli.transformers import main; main()'
    settings = {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    with log.open('wb') as out:
        server = subprocess.Popen(
            [
                *(sys.executable, '-c', main, 'serve', str(model)),
                *('--device', 'cpu', '--host', '127.0.0.1', '--port', str(port)),
            ],
            env=os.environ | settings,
            stdout=out,
            stderr=out,
        )
    try:
        end = time.monotonic() + _START_SECONDS
        while not _healthy(f'http://127.0.0.1:{port}/health'):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


class _BadLine:
    """A proxy that breaks the first try of two queries in three.

    The third kind of fault is the nastiest: the server did answer, and its answer
    was lost on the way.
    """

    def __init__(self, target: str):
        self.asked: collections.Counter[str] = collections.Counter()
        self.passed: collections.Counter[str] = collections.Counter()
        line = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers['content-length']))
                query = json.loads(body)['messages'][-1]['content']
                line.asked[query] += 1
                fault = (
                    (None, 'busy', 'lost')[len(line.asked) % 3]
                    if line.asked[query] == 1
                    else None
                )
                if fault == 'busy':
                    self.send_response(503)
                    self.end_headers()
                    return
                answer = httpx.post(
                    target + self.path,
                    content=body,
                    headers={'content-type': 'application/json'},
                    timeout=120,
                    trust_env=False,
                )
                if fault == 'lost':
                    return
                line.passed[query] += 1
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _requests(count: int) -> list[rewriting.Request]:
    persona = persona_lib.Persona('A ferryman.', voice_samples=('Mind the wet step.',))
    rows = [
        instructions_lib.Instruction(f'How is {x}?', f'It is {x}.', f'rows:{x}', 'rows')
        for x in range(count)
    ]
    return rewriting.requests_for(persona, rows, with_reference=False)


def _rewriter(
    url: str, model: object, **settings: Any
) -> rewrite_openai.OpenAIRewriter:
    quick = {
        'concurrency': 3,
        'max_tokens': _LIMIT,
        'timeout': 120.0,
        'backoff': 0.01,
        'longest_wait': 0.05,
        'retries': 2,
    }
    return rewrite_openai.OpenAIRewriter(url, str(model), **(quick | settings))


def test_a_real_server_answers_every_row_and_says_where_it_was_cut(url, model):
    replies = list(_rewriter(url, model).rewrite(_requests(4)))
    assert sorted(x.query_id for x in replies) == [f'rows:{x}' for x in range(4)]
    assert not [x.failure for x in replies if x.failure]
    # Random weights end a text by chance only; each reply is one byte a token.
    cut = [x for x in replies if not x.finished]
    assert cut
    assert all(x.text for x in cut)
    assert max(len(x.text.encode()) for x in replies) <= 3 * _LIMIT


def test_without_randomness_it_says_what_the_model_says(url, model):
    request = _requests(1)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    net = transformers.AutoModelForCausalLM.from_pretrained(model)
    inputs = tokenizer.apply_chat_template(
        list(request.messages),
        add_generation_prompt=True,
        return_dict=True,
        return_tensors='pt',
    )
    tokens = net.generate(**inputs, max_new_tokens=_LIMIT, do_sample=False)
    want = tokenizer.decode(
        tokens[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True
    )
    (reply,) = _rewriter(url, model, temperature=0.0).rewrite([request])
    assert reply.text == want


def test_a_model_that_the_server_has_not_stops_the_run(url):
    with pytest.raises(errors.InputError) as caught:
        list(_rewriter(url, 'nobody/nothing').rewrite(_requests(2)))
    message = str(caught.value)
    assert '\n' not in message
    assert 'HTTP 4' in message
    assert 'nobody/nothing' in message


def test_over_a_bad_line_no_row_is_lost_or_doubled(url, model, tmp_path):
    line = _BadLine(url)
    log = tmp_path / 'log.jsonl'
    requests = _requests(12)
    try:
        for _ in range(2):  # The second run asks for nothing.
            with pytest.raises(errors.InputError, match='truncated'):
                rewrite_log.rewrite_all(_rewriter(line.url, model), requests, log)
    finally:
        line.server.shutdown()
        line.server.server_close()
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert sorted(x['query_id'] for x in rows) == sorted(x.query_id for x in requests)
    assert all(x['rewrite'] for x in rows)
    assert line.passed == {x.query: 1 for x in requests}
    assert sorted(line.asked.values()) == [1] * 4 + [2] * 8

"""The server as a process on the real model, asked by the official client."""

from concurrent import futures
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import openai
import pytest

from ppjax.base import settings
from ppjax.chatting import conversation
from ppjax.masking import apply, pmask
from ppjax.models import generation
from ppjax.models import masks as masks_lib

_QUESTIONS = ('Who are you?', 'How do I cook rice?', 'Tell me about the river.')
_NEW = 12
# Learned masks leave the model sensible; of random ones so do those that remove little.
_KEEP = 1500


def _mask(base, seed: int) -> pmask.PersonaMask:
    rng = np.random.default_rng(seed)
    shape = (base.config.num_layers, base.config.d_ff)
    return pmask.PersonaMask(
        rng.random(shape).argsort(axis=1) < _KEEP,
        base.name,
        base.fingerprint(),
        '0' * 64,
        f'You are number {seed}, a ferryman on a wide river. Answer as he would.',
    )


@pytest.fixture(scope='module')
def folder(smollm2_base, tmp_path_factory):
    found = tmp_path_factory.mktemp('cast')
    for seed in range(3):
        pmask.save(found / f'number-{seed}.pmask', _mask(smollm2_base, seed))
    return found


@pytest.fixture(scope='module')
def server(folder, tmp_path_factory):
    """(URL, process, its log)."""
    log = tmp_path_factory.mktemp('log') / 'stderr.txt'
    command = [
        *(sys.executable, '-m', 'ppjax.serve', '--base_model=smollm2-135m'),
        *(f'--personas={folder}', '--port=0', '--slots=2', '--max_context=512'),
        '--max_tokens=64',
    ]
    with log.open('w') as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.fullmatch(r'Serving 3 personas of smollm2-135m: (\S+)\n', said)
    assert found, (said, log.read_text())
    yield found[1], process, log
    process.kill()
    process.wait()


@pytest.fixture(scope='module')
def client(server):
    with openai.OpenAI(
        base_url=f'{server[0]}v1', api_key='none', max_retries=0
    ) as found:
        yield found


def _ask(client, name: str, question: str) -> str:
    system = [{'role': 'system', 'content': 'You are a sailor.'}]
    answer = client.chat.completions.create(
        model=name,
        messages=[
            # The base has no prompt of its own, nor a template that does without.
            *(system if name == 'smollm2-135m' else []),
            {'role': 'user', 'content': question},
        ],
        temperature=0,
        max_tokens=_NEW,
    )
    return answer.choices[0].message.content


def _chatted(smollm2, mask: pmask.PersonaMask | None, question: str) -> str:
    """What `python -m ppjax.chat` says."""
    masks = masks_lib.DENSE if mask is None else mask.decoder_masks()
    prompt = 'You are a sailor.' if mask is None else mask.system_prompt
    loaded = apply.LoadedModel(
        smollm2.base, smollm2.decoder, masks, smollm2.tokenizer, prompt
    )
    return (
        conversation.Conversation(
            loaded,
            system_prompt=prompt,
            date=settings.DATE,
            max_new_tokens=_NEW,
            sampling=generation.GREEDY,
            seed=0,
            notify=lambda text: None,
        )
        .ask(question, lambda piece: None)
        .text
    )


def test_all_at_once_say_what_chat_says(client, smollm2, smollm2_base):
    names = ['smollm2-135m', 'number-0', 'number-1', 'number-2']
    asked = [(name, question) for question in _QUESTIONS for name in names]
    with futures.ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: _ask(client, *one), asked))
    for (name, question), answer in zip(asked, found, strict=True):
        number = name.removeprefix('number-')
        mask = _mask(smollm2_base, int(number)) if number.isdecimal() else None
        assert answer == _chatted(smollm2, mask, question), (name, question)
    assert len(set(found)) == len(found)


def test_the_next_turn_reads_only_what_is_new(client):
    messages = [{'role': 'user', 'content': 'How do I cross a wide river by boat?'}]

    def ask():
        return client.chat.completions.create(
            model='number-1', messages=messages, temperature=0, max_tokens=40
        )

    first = ask()
    messages += [
        {'role': 'assistant', 'content': first.choices[0].message.content},
        {'role': 'user', 'content': 'And in a storm?'},
    ]
    second = ask()
    known = second.usage.prompt_tokens_details.cached_tokens
    assert known >= (first.usage.total_tokens - 1) // 32 * 32 - 32
    assert known > first.usage.prompt_tokens - 32


def test_personas_come_and_go_while_it_serves(client, folder, smollm2_base, server):
    path = pathlib.Path(folder) / 'late.pmask'
    pmask.save(path, _mask(smollm2_base, 9))

    def there() -> bool:
        return 'late' in {model.id for model in client.models.list()}

    def wait(wanted: bool) -> None:
        end = time.monotonic() + 30
        while there() != wanted:
            assert time.monotonic() < end, server[2].read_text()
            time.sleep(0.1)

    wait(True)
    assert _ask(client, 'late', 'Who are you?')
    path.unlink()
    wait(False)
    with pytest.raises(openai.NotFoundError):
        _ask(client, 'late', 'Who are you?')


def test_what_is_under_way_is_finished_at_the_end(client, server):
    """Last: it ends the server."""
    _, process, log = server
    stream = client.chat.completions.create(
        model='number-2',
        messages=[{'role': 'user', 'content': 'Tell me a long story.'}],
        temperature=0,
        max_tokens=60,
        logit_bias={'2': -100},  # It does not end by itself.
        stream=True,
    )
    chunks = iter(stream)
    next(chunks)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == 'length'
    assert process.wait(60) == 0, log.read_text()

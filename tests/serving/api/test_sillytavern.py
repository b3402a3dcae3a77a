"""SillyTavern's requests, and answers read as SillyTavern reads them."""

import json
import pathlib

import pytest

from tests.serving.api import conftest

_FOLDER = pathlib.Path(__file__).parent / 'sillytavern'
_REQUESTS = {
    path.stem: json.loads(path.read_text()) for path in sorted(_FOLDER.glob('*.json'))
}


def _read_text_stream(text: str) -> tuple[list[str], list[list]]:
    """(the answer and its swipes, the candidates that each piece came with)."""
    texts, candidates = [''], []
    for event in text.split('\n\n'):
        data = event.removeprefix('data: ')
        if not data or data == '[DONE]':
            continue
        found = json.loads(data)
        # Either of these would be taken for an error.
        assert not {'error', 'message', 'detail'} & set(found)
        choices = found.get('choices') or [{}]
        index = choices[0].get('index', 0)
        texts += [''] * (index + 1 - len(texts))
        texts[index] += choices[0].get('text') or found.get('content') or ''
        if probabilities := found.get('completion_probabilities'):
            top = probabilities[0]['top_logprobs']
            candidates.append([[x['token'], x['logprob']] for x in top])
        elif listed := (choices[0].get('logprobs') or {}).get('top_logprobs'):
            candidates.append(list(listed[0].items()))
    return texts, candidates


def _read_chat_stream(text: str) -> str:
    said = ''
    for event in text.split('\n\n'):
        data = event.removeprefix('data: ')
        if data and data != '[DONE]':
            choices = json.loads(data)['choices']
            said += choices[0]['delta'].get('content') or ''
    return said


@pytest.mark.parametrize('name', [n for n in _REQUESTS if 'chat' not in n])
def test_text_completion(client, engine, own, name):
    request = _REQUESTS[name]
    body = request['body']
    found = client.post(request['path'], json=body)
    assert found.status_code == 200, found.text
    if body.get('stream'):
        texts, candidates = _read_text_stream(found.text)
        assert bool(candidates) == ('logprobs' in body)
        assert all(len(listed) >= 5 for listed in candidates)
    else:
        texts = [found.json()['content']]
    assert texts == [conftest.SAID] * body.get('n', 1)
    job = engine.asked[0]
    # The template that it rendered itself is read as such.
    assert own.text(job.prompt, special=True) == body['prompt']
    assert job.member.name == body.get('model', 'tiny')
    assert job.max_tokens == 48
    draws = job.sampling
    assert (draws.temperature, draws.top_p, draws.top_k) == (0.7, 0.95, None)
    if name not in ('generic', 'vllm'):
        assert (draws.repetition_penalty, draws.min_p) == (1.05, 0.05)
        assert (draws.xtc_probability, draws.xtc_threshold) == (0.5, 0.1)
        assert (draws.dry.multiplier, draws.dry.last_n) == (0.8, None)
        assert own.tokenizer.encode('*')[0] in draws.dry.breakers
    if name.startswith('llama_cpp'):
        assert draws.bias[1] < -1e8


@pytest.mark.parametrize('stream', [False, True])
def test_chat_completion(client, engine, own, stream):
    request = _REQUESTS['chat_custom' if stream else 'chat_custom_whole']
    found = client.post(request['path'], json=request['body'])
    assert found.status_code == 200, found.text
    if stream:
        assert _read_chat_stream(found.text) == conftest.SAID
    else:
        choices = found.json()['choices']
        assert [c['message']['content'] for c in choices] == [conftest.SAID] * 2
        content = choices[0]['logprobs']['content']
        assert len(content[0]['top_logprobs']) == 5
        assert engine.asked[0].sampling.seed == 7
    prompt = own.text(engine.asked[0].prompt, special=True)
    assert prompt.count('<|im_start|>system') == 3
    assert 'Jack is the captain' in prompt


def test_connecting(client, own):
    """What is asked before the first message: models, the template, token counts."""
    assert client.get('/v1/models').json()['data'][0]['id'] == 'tiny'
    assert client.get('/props').json()['chat_template'].endswith('%}')
    ids = own.tokenizer.encode('Hello?', add_special_tokens=False)
    found = client.post('/tokenize', json={'content': 'Hello?'}).json()
    assert found['tokens'] == ids
    found = client.post('/tokenize', json={'model': 'jack', 'prompt': 'Hello?'}).json()
    assert (found['tokens'], found['count']) == (ids, len(ids))
    found = client.post('/api/extra/tokencount', json={'prompt': 'Hello?'}).json()
    assert (found['value'], found['ids']) == (len(ids), ids)
    found = client.post('/detokenize', json={'tokens': ids}).json()
    assert found['content'] == 'Hello?'

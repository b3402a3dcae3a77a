"""The three endpoints for answers: their forms, whole and in pieces."""

import json

import pytest

from ppjax.serving import jobs
from tests.serving import fakes
from tests.serving.api import conftest

SAID = conftest.SAID


def _events(text: str) -> list:
    """The JSON of server-sent events; '[DONE]' as it is."""
    lines = text.split('\n\n')
    assert lines.pop() == ''
    found = [line.removeprefix('data: ') for line in lines]
    return [x if x == '[DONE]' else json.loads(x) for x in found]


def _streamed(client, path: str, body: dict) -> list:
    found = client.post(path, json=body | {'stream': True})
    assert found.status_code == 200
    assert found.headers['content-type'].startswith('text/event-stream')
    return _events(found.text)


def test_a_chat_is_answered(client, chat, engine):
    found = client.post('/v1/chat/completions', json=chat).json()
    assert found['object'] == 'chat.completion'
    assert found['model'] == 'jack'
    [choice] = found['choices']
    assert choice['message']['content'] == SAID
    assert (choice['finish_reason'], choice['logprobs']) == ('stop', None)
    [job] = engine.asked
    assert (job.member.name, job.top_logprobs) == ('jack', None)
    usage = found['usage']
    assert usage['prompt_tokens'] == len(job.prompt)
    assert usage['total_tokens'] == len(job.prompt) + usage['completion_tokens']
    cached = usage['prompt_tokens_details']['cached_tokens']
    assert cached == len(job.prompt) // 2


def test_the_persona_speaks_under_its_own_system_message(client, chat, engine, own):
    client.post('/v1/chat/completions', json=chat)
    client.post('/v1/chat/completions', json=chat | {'model': 'tiny'})
    mine = [{'role': 'developer', 'content': 'Be brief.'}, *chat['messages']]
    client.post('/v1/chat/completions', json=chat | {'messages': mine})
    prompts = [own.text(job.prompt, special=True) for job in engine.asked]
    assert ['You are jack.' in prompt for prompt in prompts] == [True, False, False]
    assert 'system\nBe brief.' in prompts[2]
    assert all(prompt.endswith('assistant\n') for prompt in prompts)


def test_a_chat_streams(client, chat):
    body = chat | {'stream_options': {'include_usage': True}, 'n': 2}
    *chunks, done = _streamed(client, '/v1/chat/completions', body)
    assert done == '[DONE]'
    assert {chunk['object'] for chunk in chunks} == {'chat.completion.chunk'}
    assert len({chunk['id'] for chunk in chunks}) == 1
    *chunks, last = chunks
    assert last['choices'] == []
    assert last['usage']['completion_tokens'] > 2
    assert {chunk['usage'] for chunk in chunks} == {None}
    for index in range(2):
        own = [c['choices'][0] for c in chunks if c['choices'][0]['index'] == index]
        assert own[0]['delta'] == {'role': 'assistant', 'content': ''}
        assert ''.join(c['delta'].get('content', '') for c in own) == SAID
        assert [c['finish_reason'] for c in own if c['finish_reason']] == ['stop']
        assert own[-1]['finish_reason'] == 'stop'


def test_answers_to_one_request_are_drawn_apart(client, chat, engine):
    found = client.post('/v1/chat/completions', json=chat | {'n': 3, 'seed': 5}).json()
    assert [c['index'] for c in found['choices']] == [0, 1, 2]
    assert [job.choice for job in engine.asked] == [0, 1, 2]
    assert {job.sampling.seed for job in engine.asked} == {5}
    # A prompt counts once.
    assert found['usage']['prompt_tokens'] == len(engine.asked[0].prompt)


@pytest.mark.parametrize('stream', [False, True])
def test_a_stop_string_ends_it_and_frees_the_row(client, chat, engine, stream):
    engine.delay = 0.01
    body = chat | {'stop': ['tey! Ż']}
    if stream:
        chunks = _streamed(client, '/v1/chat/completions', body)[:-1]
        deltas = [chunk['choices'][0]['delta'] for chunk in chunks]
        text = ''.join(delta.get('content', '') for delta in deltas)
        reason = chunks[-1]['choices'][0]['finish_reason']
    else:
        found = client.post('/v1/chat/completions', json=body).json()['choices'][0]
        text, reason = found['message']['content'], found['finish_reason']
    assert (text, reason) == ('Ahoy, ma', 'stop')
    engine.wait_idle()
    assert engine.ends == ['cancelled']


def test_the_length_ends_it(client, chat, engine):
    body = chat | {'max_tokens': 99, 'max_completion_tokens': 3}
    found = client.post('/v1/chat/completions', json=body).json()
    assert found['choices'][0]['finish_reason'] == 'length'
    assert found['usage']['completion_tokens'] == 3
    client.post('/v1/chat/completions', json=chat | {'max_tokens': 10**9})
    assert engine.asked[1].max_tokens == fakes.CONTEXT - len(engine.asked[1].prompt)


def _tokens_of(chunks: list) -> list:
    return [
        entry
        for chunk in chunks
        if chunk['choices'] and chunk['choices'][0]['logprobs']
        for entry in chunk['choices'][0]['logprobs']['content']
    ]


def test_logprobs_of_a_chat(client, chat, engine):
    body = chat | {'logprobs': True, 'top_logprobs': 2}
    found = client.post('/v1/chat/completions', json=body).json()['choices'][0]
    content = found['logprobs']['content']
    spelled = b''.join(bytes(entry['bytes']) for entry in content)
    assert spelled.decode() == SAID
    assert [len(entry['top_logprobs']) for entry in content] == [2] * len(content)
    assert content[0]['logprob'] == content[0]['top_logprobs'][0]['logprob'] == -0.5
    assert content[0]['token'] == content[0]['top_logprobs'][0]['token']
    chunks = _streamed(client, '/v1/chat/completions', body)[:-1]
    assert _tokens_of(chunks) == content
    client.post('/v1/chat/completions', json=chat | {'logprobs': True})
    assert [job.top_logprobs for job in engine.asked] == [2, 2, 0]


def test_impossible_tokens_are_json_too(client, chat, engine):
    endless = jobs.Token(50, float('-inf'), ((51, float('-inf')),))
    engine.script = lambda job: [endless]
    body = chat | {'logprobs': True, 'top_logprobs': 1}
    found = client.post('/v1/chat/completions', json=body).json()['choices'][0]
    assert found['logprobs']['content'][0]['logprob'] == -9999.0


def test_a_text_goes_on(client, engine, own):
    body = {'model': 'ida', 'prompt': '<|im_start|>user\nHi<|im_end|>\n'}
    found = client.post('/v1/completions', json=body | {'max_tokens': 50}).json()
    assert found['object'] == 'text_completion'
    [choice] = found['choices']
    assert (choice['text'], choice['finish_reason']) == (SAID, 'stop')
    assert choice['logprobs'] is None
    [job] = engine.asked
    # The markup of a rendered conversation is read as such.
    assert own.text(job.prompt, special=True) == body['prompt']
    assert job.prompt[0] == own.tokenizer.convert_tokens_to_ids('<|im_start|>')
    client.post('/v1/completions', json=body)
    assert engine.asked[1].max_tokens == 16


@pytest.mark.parametrize(
    ('prompt', 'count'),
    [('Hi', 1), (['Hi', 'Yes'], 2), ([50, 51], 1), ([[50, 51], [52]], 2), (['Hi'], 1)],
)
def test_prompts_in_all_forms(client, engine, own, prompt, count):
    body = {'prompt': prompt, 'n': 2, 'max_tokens': 50}
    found = client.post('/v1/completions', json=body)
    assert [c['index'] for c in found.json()['choices']] == list(range(2 * count))
    # Jobs may be asked for in any order of threads.
    prompts = {job.prompt for job in engine.asked}
    listed = prompt if isinstance(prompt, list) and prompt != [50, 51] else [prompt]
    assert prompts == {
        tuple(one) if isinstance(one, list) else own.prompt(one) for one in listed
    }
    wanted = sum(map(len, prompts))
    assert found.json()['usage']['prompt_tokens'] == wanted
    chunks = _streamed(client, '/v1/completions', body)[:-1]
    for index in range(2 * count):
        choices = [c['choices'][0] for c in chunks]
        assert ''.join(c['text'] for c in choices if c['index'] == index) == SAID


def test_a_prompt_is_sent_back(client):
    body = {'prompt': ['Hi. ', 'Yes. '], 'echo': True, 'max_tokens': 50}
    found = client.post('/v1/completions', json=body).json()['choices']
    assert [c['text'] for c in found] == [f'Hi. {SAID}', f'Yes. {SAID}']
    chunks = _streamed(client, '/v1/completions', body)[:-1]
    own = [c['choices'][0] for c in chunks if c['choices'][0]['index'] == 1]
    assert ''.join(c['text'] for c in own) == f'Yes. {SAID}'


def test_logprobs_of_a_text(client):
    body = {'prompt': 'Hi', 'logprobs': 3, 'max_tokens': 50}
    found = client.post('/v1/completions', json=body).json()['choices'][0]['logprobs']
    assert ''.join(found['tokens'][:4]) == SAID[: found['text_offset'][4]]
    assert set(found['token_logprobs']) == {-0.5}
    assert len(found['tokens']) == len(found['text_offset'])
    assert max(map(len, found['top_logprobs'])) == 3
    chunks = [
        chunk['choices'][0]['logprobs']
        for chunk in _streamed(client, '/v1/completions', body)[:-1]
    ]
    assert [x for chunk in chunks for x in chunk['tokens']] == found['tokens']
    body['logprobs'] = 0
    found = client.post('/v1/completions', json=body).json()['choices'][0]['logprobs']
    assert set(map(len, found['top_logprobs'])) == {0}
    assert found['token_logprobs'][0] == -0.5


@pytest.mark.parametrize('path', ['/completion', '/completions'])
def test_llama_cpps_completion(client, engine, path):
    body = {'prompt': 'Hi', 'n_predict': -1, 'n_probs': 2, 'model': 'jack'}
    found = client.post(path, json=body).json()
    assert (found['content'], found['stop'], found['stop_type']) == (SAID, True, 'eos')
    assert found['tokens_evaluated'] == len(engine.asked[0].prompt)
    assert found['timings']['predicted_n'] == found['tokens_predicted']
    probabilities = found['completion_probabilities']
    assert probabilities[0]['top_logprobs'][0]['id'] == probabilities[0]['id']
    assert engine.asked[0].max_tokens == fakes.CONTEXT - len(engine.asked[0].prompt)
    *pieces, last = _streamed(client, path, body)
    assert ''.join(piece['content'] for piece in pieces) == SAID
    assert {piece['stop'] for piece in pieces} == {False}
    assert (last['stop'], last['content']) == (True, '')
    assert last['tokens_predicted'] == found['tokens_predicted']
    cut = client.post(path, json=body | {'stop': ['matey']}).json()
    assert (cut['stop_type'], cut['stopping_word']) == ('word', 'matey')
    short = client.post(path, json=body | {'n_predict': 2}).json()
    assert short['stop_type'] == 'limit'


def test_a_prompt_of_text_and_tokens(client, engine, own):
    client.post('/completion', json={'prompt': [50, 'Hi', 51]})
    assert engine.asked[0].prompt == (50, *own.prompt('Hi'), 51)


@pytest.mark.parametrize('path', ['/v1/chat/completions', '/completion'])
def test_what_breaks_off_is_an_error(client, chat, engine, own, path):
    said = fakes.saying(own, SAID)

    def breaks(job):
        yield from list(said(job))[:2]
        yield jobs.Ended('error', error='The device is gone.')

    engine.script = breaks
    body = chat | {'prompt': 'Hi'}
    found = client.post(path, json=body)
    assert found.status_code == 500
    assert found.json()['error']['message'] == 'The device is gone.'
    events = _streamed(client, path, body)
    error = next(x['error'] for x in events if isinstance(x, dict) and 'error' in x)
    assert error['message'] == 'The device is gone.'
    # The next is none the worse for it.
    engine.script = said
    assert client.post(path, json=body).status_code == 200


def test_texts_are_logged_only_when_it_is_asked_for(client, made, chat, capfd):
    lines: list[str] = []
    client.post('/v1/chat/completions', json=chat)
    assert capfd.readouterr() == ('', '')
    made.log = lines.append
    client.post('/v1/chat/completions', json=chat)
    [line] = lines
    assert line.startswith('jack, asked ')
    assert 'Hello?' in line
    assert SAID in line


def test_a_mistake_is_said_without_texts(client, made, chat, capfd):
    def fails(who, messages):
        raise RuntimeError(messages[0]['content'])

    made.converse = fails
    found = client.post('/v1/chat/completions', json=chat)
    assert found.status_code == 500
    assert found.json()['error']['type'] == 'server_error'
    said = capfd.readouterr().err
    assert 'RuntimeError' in said
    assert 'Hello?' not in said

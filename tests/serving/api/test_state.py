"""Who is served, tokens by themselves, and how the server is."""

import json

import prometheus_client.parser

from tests.serving import fakes
from tests.serving.api import conftest


def test_models_as_vllm_has_them(client):
    found = client.get('/v1/models').json()
    assert found['object'] == 'list'
    base, jack, _ = found['data']
    assert (base['id'], base['parent'], base['root']) == ('tiny', None, 'models/tiny')
    assert (jack['id'], jack['parent']) == ('jack', 'tiny')
    assert jack['root'] == '/masks/jack.pmask'
    assert (jack['max_model_len'], jack['created']) == (fakes.CONTEXT, 1_700_000_000)
    assert client.get('/models').json() == found
    assert client.get('/v1/models/jack').json() == jack


def test_who_comes_and_goes(client, made, chat):
    assert client.post('/v1/chat/completions', json=chat).status_code == 200
    del made.cast.found['jack']
    assert client.post('/v1/chat/completions', json=chat).status_code == 404
    made.cast.found['jack'] = fakes.member('jack')
    assert client.post('/v1/chat/completions', json=chat).status_code == 200


def test_the_cast_as_the_page_shows_it(client, made):
    moving = fakes.members_lib.Picture('image/gif', b'a picture')
    made.cast.found['a/b ?"'] = fakes.member('a/b ?"', picture=moving)
    drawn = fakes.members_lib.Picture('image/svg+xml', b'<svg onload=x>')
    made.cast.found['ida'] = fakes.member('ida', picture=drawn, persona=None)
    found = client.get('/cast').json()
    assert found['base'] == 'tiny'
    base, jack, ida, odd = found['members']
    assert base == {
        'id': 'tiny',
        'title': 'tiny',
        'greeting': '',
        'sparsity': 0.0,
        'picture': None,
        'dense': True,
        'system': '',
    }
    assert (jack['title'], jack['greeting']) == ('Jack', 'jack here.')
    assert jack['system'] == 'You are jack.'
    # What can hold scripts is not shown.
    assert (ida['title'], ida['picture']) == ('ida', None)
    assert client.get('/cast/ida/picture').status_code == 404
    for one, kind in ((jack, 'png'), (odd, 'gif')):
        picture = client.get(one['picture'])
        assert picture.content == b'a picture'
        assert picture.headers['content-type'] == f'image/{kind}'
        assert picture.headers['x-content-type-options'] == 'nosniff'
    assert client.get('/cast/tiny/picture').status_code == 404
    assert client.get('/cast/nobody/picture').status_code == 404


def test_a_text_and_its_tokens(client, own):
    ids = own.tokenizer.encode('Żółw 😂', add_special_tokens=False)
    found = client.post('/tokenize', json={'content': 'Żółw 😂'}).json()
    assert found == {'tokens': ids, 'count': len(ids), 'max_model_len': fakes.CONTEXT}
    assert client.post('/tokenize', json={'prompt': 'Żółw 😂'}).json() == found
    pieces = client.post('/tokenize', json={'content': 'Żółw 😂', 'with_pieces': True})
    pieces = [entry['piece'] for entry in pieces.json()['tokens']]
    spelled = [p.encode() if isinstance(p, str) else bytes(p) for p in pieces]
    assert b''.join(spelled).decode() == 'Żółw 😂'
    back = client.post('/detokenize', json={'tokens': ids}).json()
    assert back['content'] == 'Żółw 😂'
    counted = client.post('/api/extra/tokencount', json={'prompt': 'Żółw 😂'}).json()
    assert counted == {'value': len(ids), 'ids': ids}
    for path, body in (
        ('/tokenize', {}),
        ('/tokenize', {'content': 5}),
        ('/detokenize', {}),
        ('/detokenize', {'tokens': [10**9]}),
        ('/detokenize', {'tokens': ['a']}),
        ('/api/extra/tokencount', {'prompt': '\ud800'}),
    ):
        found = client.post(path, content=json.dumps(body))
        assert found.status_code == 400, (path, body)


def test_a_chat_rendered_as_it_is_answered(client, chat, engine, own):
    text = client.post('/apply-template', json=chat).json()['prompt']
    assert 'You are jack.' in text
    assert text.endswith('<|im_start|>assistant\n')
    client.post('/v1/chat/completions', json=chat)
    assert own.prompt(text) == engine.asked[0].prompt
    counted = client.post('/tokenize', json=chat).json()
    assert tuple(counted['tokens']) == engine.asked[0].prompt
    marked = [{'role': 'user', 'content': '<|im_end|>'}]
    found = client.post('/apply-template', json=chat | {'messages': marked})
    assert found.json()['error']['param'] == 'messages'


def test_what_llama_cpp_says_of_itself(client, own):
    found = client.get('/props').json()
    assert found['chat_template'] == own.tokenizer.chat_template
    assert found['total_slots'] == 4
    assert found['default_generation_settings']['n_ctx'] == fakes.CONTEXT
    assert found['model_path'] == 'models/tiny'


def _metrics(client) -> dict[tuple, float]:
    """(name, labels) -> value."""
    text = client.get('/metrics').text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in prometheus_client.parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_measured(client, chat, engine, own):
    before = _metrics(client)
    assert before['ppjax_slots',] == 4
    client.post('/v1/chat/completions', json=chat)
    client.post('/v1/chat/completions', json=chat | {'n': 2, 'max_tokens': 1})
    client.post('/v1/chat/completions', json=chat | {'top_p': 2})
    engine.wait_idle()
    found = _metrics(client)
    drawn = len(own.tokenizer.encode(conftest.SAID)) + 1
    assert found['ppjax_answer_tokens_total', 'jack'] == drawn + 2
    assert found['ppjax_requests_total', 'jack'] == 3
    assert found['ppjax_answers_total', 'jack', 'stop'] == 1
    assert found['ppjax_answers_total', 'jack', 'length'] == 2
    assert found['ppjax_time_to_first_token_seconds_count', 'jack'] == 3
    assert found['ppjax_time_per_token_seconds_count', 'jack'] == 1
    assert found['ppjax_refused_requests_total', '400'] == 1
    assert found['ppjax_cache_hits_total',] == 3
    assert found['ppjax_requests_running',] == found['ppjax_requests_waiting',] == 0


def test_who_has_left_is_measured_no_more(client, made, chat, engine):
    for name in ('jack', 'ida'):
        client.post('/v1/chat/completions', json=chat | {'model': name})
    engine.wait_idle()
    everybody = {label for _, *labels in _metrics(client) for label in labels}
    assert {'jack', 'ida'} <= everybody
    ida = made.cast.found.pop('ida')
    left = {label for _, *labels in _metrics(client) for label in labels}
    assert left == everybody - {'ida'}
    made.cast.found['ida'] = ida
    client.post('/v1/chat/completions', json=chat | {'model': 'ida'})
    assert _metrics(client)['ppjax_answers_total', 'ida', 'stop'] == 1


def test_health(client, made, chat):
    assert client.get('/health').json() == {'status': 'ok'}
    made.draining = True
    for found in (
        client.get('/health'),
        client.post('/v1/chat/completions', json=chat),
        client.post('/v1/completions', json={'prompt': 'Hi'}),
    ):
        assert found.status_code == 503
        assert int(found.headers['retry-after']) > 0
        assert found.json()['error']['type'] == 'server_error'
    # Who is in it can still be read.
    assert client.get('/v1/models').status_code == 200

"""Embeddings from a server, and from what is none."""

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.chat_api import addresses, embedding_client
from ppjax.chat_api import client as client_lib


def _client(url):
    return embedding_client.EmbeddingClient(
        url, 'tiny', backoff=0.01, longest_wait=0.02, notify=lambda line: None
    )


def _reply(vector):
    return {'object': 'list', 'data': [{'index': 0, 'embedding': vector}]}


def test_texts_in_their_order(serve_json):
    asked = []

    def answer(body):
        asked.append(body)
        return 200, _reply([len(body['input']), 0.5])

    texts = ['x' * count for count in (3, 1, 2, 9, 5)]
    found = _client(serve_json(answer)).embed(texts)
    np.testing.assert_array_equal(found, [[x, 0.5] for x in (3, 1, 2, 9, 5)])
    # OpenAI refuses what it does not know.
    assert all(body.keys() == {'model', 'input'} for body in asked)
    assert {body['model'] for body in asked} == {'tiny'}


def test_the_address(serve_json):
    url = serve_json(lambda body: (404, {'error': 'No such path.'}))
    with pytest.raises(client_lib.Refused, match=f'{url}/v1/embeddings'):
        _client(url).embed(['x'])
    assert addresses.checked('http://a/v1/embeddings/') == 'http://a/v1'


def test_a_fault_that_passes(serve_json):
    asked = []

    def answer(body):
        asked.append(body)
        return (503, {}) if len(asked) < 3 else (200, _reply([1]))

    np.testing.assert_array_equal(_client(serve_json(answer)).embed(['x']), [[1.0]])


@pytest.mark.parametrize(
    'body',
    [
        {'choices': [{'message': {'content': 'Aye.'}}]},
        {'data': []},
        {'data': [{'embedding': []}]},
        {'data': [{'embedding': [1, None]}]},
        {'data': [{'embedding': [1, float('inf')]}]},
        {'data': [{'embedding': 'AAAA'}]},
        [],
    ],
)
def test_what_is_no_embedding_is_refused(serve_json, body):
    with pytest.raises(client_lib.Refused, match='no embedding'):
        _client(serve_json(lambda request: (200, body))).embed(['x'])


def test_a_text_that_the_server_will_not_take_is_named(serve_json):
    def answer(body):
        if body['input'] == 'long':
            return 400, {'error': {'message': 'x', 'code': 'context_length_exceeded'}}
        return 200, _reply([1.0])

    with pytest.raises(errors.InputError, match=r"no embedding of 'long': HTTP 400"):
        _client(serve_json(answer)).embed(['short', 'long'])


def test_embeddings_of_several_lengths_are_refused(serve_json):
    url = serve_json(lambda body: (200, _reply([1.0] * len(body['input']))))
    with pytest.raises(errors.InputError, match=r'of \[1, 2\] numbers'):
        _client(url).embed(['a', 'bb'])


def test_before_giving_up_the_server_is_asked_for_an_embedding(serve_json):
    asked = []

    def answer(body):
        asked.append(body['input'])
        return (200, _reply([1.0])) if body['input'] == 'Hello.' else (500, {})

    client = embedding_client.EmbeddingClient(
        serve_json(answer), 'tiny', retries=0, notify=lambda line: None
    )
    calls = [client_lib.ChatRequest(str(x), {'input': 'x'}) for x in range(6)]
    assert all(found.choice is None for found in client.ask(calls))
    assert 'Hello.' in asked

"""Whatever a request holds, it is answered or refused: never a mistake of the server."""

import json

import hypothesis
from hypothesis import strategies
import pytest
from starlette import testclient

from ppjax.serving.api import app, service
from tests.serving import fakes
from tests.serving.api import conftest

_FIELDS = (
    *('model', 'messages', 'prompt', 'n', 'best_of', 'echo', 'suffix', 'stream'),
    *('stream_options', 'max_tokens', 'max_completion_tokens', 'n_predict', 'stop'),
    *('stop_token_ids', 'temperature', 'top_p', 'top_k', 'min_p', 'seed', 'logit_bias'),
    *('logprobs', 'top_logprobs', 'n_probs', 'frequency_penalty', 'rep_pen'),
    *('dry_multiplier', 'dry_base', 'dry_allowed_length', 'dry_penalty_last_n'),
    *('dry_sequence_breakers', 'xtc_probability', 'xtc_threshold', 'ignore_eos'),
    *('response_format', 'tool_choice', 'add_bos_token', 'content', 'tokens'),
    'with_pieces',
)
_PATHS = (
    *('/v1/chat/completions', '/v1/completions', '/completion', '/tokenize'),
    *('/detokenize', '/apply-template', '/api/extra/tokencount'),
)
_TEXT = strategies.sampled_from(
    ['jack', 'user', 'Hi', '', '\ud83d', '<|im_end|>', '-1', '7', 'x' * 70, '["\\n"]']
)
_NUMBERS = strategies.sampled_from(
    [0, 1, -1, 2, 0.5, 1.0, 2**31, -(2**31), 2**63, 10**400, 1e308, 49152, 5e-324]
)
_SCALARS = strategies.none() | strategies.booleans() | _NUMBERS | _TEXT
_MESSAGES = strategies.lists(
    strategies.dictionaries(
        strategies.sampled_from(['role', 'content', 'type', 'text']), _SCALARS
    ),
    max_size=3,
)
_VALUES = strategies.recursive(
    _SCALARS,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(_TEXT, inner, max_size=3)
    ),
    max_leaves=6,
)
_GOOD = {'messages': [{'role': 'user', 'content': 'Hi'}], 'prompt': 'Hi'}


@pytest.fixture(scope='module')
def asks(own):
    engine = fakes.Engine(fakes.saying(own, conftest.SAID), slots=30, queue=99)
    made = fakes.make_service(
        own, engine, limits=service.Limits(body=20_000, choices=4)
    )
    with testclient.TestClient(
        app.application(made), base_url='http://localhost'
    ) as client:
        yield client
    made.close()


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    path=strategies.sampled_from(_PATHS),
    changes=strategies.dictionaries(
        strategies.sampled_from(_FIELDS), _VALUES | _MESSAGES, max_size=3
    ),
)
def test_any_request(asks, path, changes):
    found = asks.post(path, content=json.dumps(_GOOD | changes))
    assert found.status_code in (200, 400, 404), (found.status_code, found.text)
    if found.status_code == 200:
        # A stream's failure is its last event.
        assert '"error"' not in found.text
    else:
        assert found.json()['error']['message']

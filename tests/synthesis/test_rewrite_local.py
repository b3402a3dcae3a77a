"""The local rewriter against transformers' generate, prompt by prompt."""

import numpy as np
import pytest
import torch
import transformers

from ppjax.data import chat, stop_tokens
from ppjax.synthesis import rewrite_local, rewriting

_QUERIES = [
    'What is the capital of France?',
    'Give me three tips for staying healthy, and say which one matters most to you.',
    'hi',
    'Write one sentence about the sea.',
    'How many legs does a spider have?',
    'Explain in two sentences why the sky is blue, as you would to a child of six.',
]
_SYSTEM = 'You are a ferryman of few words. Answer as he would.'


def _requests(queries):
    return [
        rewriting.Request(
            f'q{number}',
            query,
            (
                {'role': 'system', 'content': _SYSTEM},
                {'role': 'user', 'content': query},
            ),
        )
        for number, query in enumerate(queries)
    ]


@pytest.fixture(scope='module')
def renderer(smollm2):
    return chat.ChatRenderer(smollm2.tokenizer, date='2026-01-01')


@pytest.fixture(scope='module')
def make(smollm2, renderer):
    def rewriter(**changes):
        options = {'max_tokens': 24, 'temperature': 0.0, 'batch_size': 8, 'seed': 0}
        return rewrite_local.LocalRewriter(
            smollm2.base, renderer, model=smollm2.decoder, **(options | changes)
        )

    return rewriter


@pytest.fixture(scope='module')
def greedy(make):
    return {reply.query_id: reply for reply in make().rewrite(_requests(_QUERIES))}


def test_greedy_replies_equal_transformers(greedy, renderer, smollm2, smollm2_hf):
    stops = stop_tokens.stop_ids(smollm2.base.generation_config(), smollm2.tokenizer)
    for request in _requests(_QUERIES):
        prompt = renderer.prompt(request.messages)
        with torch.no_grad():
            out = smollm2_hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=transformers.GenerationConfig(
                    max_new_tokens=24,
                    do_sample=False,
                    pad_token_id=0,
                    eos_token_id=sorted(stops),
                ),
            )[0, len(prompt) :].tolist()
        finished = out[-1] in stops
        want = smollm2.tokenizer.decode(out[:-1] if finished else out)
        reply = greedy[request.query_id]
        assert (reply.text, reply.finished) == (want, finished)
    # Both ways of ending occurred.
    assert len({reply.finished for reply in greedy.values()}) == 2


def test_what_is_left_to_do_changes_no_reply(greedy, make):
    # Three of six, on eight devices: rows of padding alone, and another prefix.
    rest = list(make().rewrite(_requests(_QUERIES)[1:4]))
    assert len(rest) == 3
    for reply in rest:
        assert reply == greedy[reply.query_id]


def test_draws_belong_to_the_query(make):
    warm = make(temperature=0.9, max_tokens=12)
    whole = {r.query_id: r.text for r in warm.rewrite(_requests(_QUERIES))}
    part = {r.query_id: r.text for r in warm.rewrite(_requests(_QUERIES)[2:])}
    assert part.items() <= whole.items()
    other = make(temperature=0.9, max_tokens=12, seed=1)
    again = {r.query_id: r.text for r in other.rewrite(_requests(_QUERIES)[:1])}
    assert again['q0'] != whole['q0']


def test_prompts_that_cannot_be_asked_are_failures(make):
    requests = [
        *_requests(['<|im_end|>', 'word ' * 9000]),
        *_requests(_QUERIES)[2:3],
    ]
    replies = {reply.query_id: reply for reply in make(max_tokens=4).rewrite(requests)}
    assert "the model's own markup" in replies['q0'].failure
    assert 'leaves no room in the model' in replies['q1'].failure
    assert not replies['q2'].failure and replies['q2'].text


def test_identity_names_what_the_words_depend_on(make):
    identities = {
        make(**changes).identity
        for changes in ({}, {'seed': 1}, {'temperature': 0.5}, {'max_tokens': 9})
    }
    assert len(identities) == 4
    assert make(batch_size=3).identity == make().identity
    assert np.all([identity.startswith('local ') for identity in identities])

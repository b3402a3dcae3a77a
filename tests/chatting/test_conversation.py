"""A conversation: what is forgotten, cut, interrupted and counted."""

import dataclasses

import jax
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.chatting import conversation
from ppjax.masking import apply
from ppjax.models import generation
from ppjax.models import masks as masks_lib


def _conversation(loaded, notices=None, max_position=4096, new=5, system='Be brief.'):
    cfg = dataclasses.replace(loaded.decoder.cfg, max_position=max_position)
    leaves, treedef = jax.tree.flatten(loaded.decoder)
    decoder = jax.tree.unflatten(treedef, leaves)
    decoder.cfg = cfg
    return conversation.Conversation(
        dataclasses.replace(loaded, decoder=decoder),
        system_prompt=system,
        date='2026-01-01',
        max_new_tokens=new,
        sampling=generation.GREEDY,
        seed=0,
        notify=([] if notices is None else notices).append,
    )


def test_oldest_turns_are_forgotten_when_the_positions_run_out(loaded):
    notices: list[str] = []
    conversation = _conversation(loaded, notices, max_position=144, new=20)
    questions = [f'Question number {i}?' for i in range(8)]
    for question in questions:
        answer = conversation.ask(question, lambda piece: None)
        # By the flag: there was room for a whole one every time.
        assert answer.cut == '--max_new_tokens=20'
    assert notices and 'forgotten' in notices[0] and '144 positions' in notices[0]
    system, *turns = conversation.messages
    assert system == {'role': 'system', 'content': 'Be brief.'}
    assert [turn['role'] for turn in turns] == ['user', 'assistant'] * (len(turns) // 2)
    kept = [turn['content'] for turn in turns[::2]]
    assert 1 < len(kept) < 8
    assert kept == questions[-len(kept) :]
    # No more than had to be: a turn takes about 36 tokens.
    assert 144 - 20 - 40 < answer.prompt_tokens <= 144 - 20


def test_a_question_that_cannot_fit_is_refused_and_not_remembered(loaded):
    conversation = _conversation(loaded, max_position=96)
    conversation.ask('Ahoy?', lambda piece: None)
    with pytest.raises(errors.InputError, match='96 positions'):
        conversation.ask('ships ' * 100, lambda piece: None)
    assert [m['role'] for m in conversation.messages] == ['system']


def test_an_answer_is_cut_where_the_positions_end(loaded):
    conversation = _conversation(loaded, max_position=64, new=1000, system='')
    answer = conversation.ask('Ahoy?', lambda piece: None)
    assert answer.cut == "the model's 64 positions"
    assert answer.prompt_tokens + len(answer.arrivals) == 64
    assert _conversation(loaded).ask('Ahoy?', lambda piece: None).cut == (
        '--max_new_tokens=5'
    )


def test_a_stop_token_is_not_shown_and_ends_the_answer(loaded, monkeypatch):
    ids = loaded.tokenizer.encode('x y')
    monkeypatch.setattr(
        generation, 'stream', lambda *_, **__: iter(np.array([[*ids, 2, 7]]).T)
    )
    pieces: list[str] = []
    conversation = _conversation(loaded, new=8)
    answer = conversation.ask('Ahoy?', pieces.append)
    assert ''.join(pieces) == answer.text == 'x y'
    assert answer.cut is None and len(answer.arrivals) == len(ids) + 1
    assert conversation.messages[-1] == {'role': 'assistant', 'content': 'x y'}


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_shown(loaded):
    conversation = _conversation(loaded, new=50)
    shown: list[str] = []

    def show(piece):
        shown.append(piece)
        if len(shown) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask('Ahoy?', show)
    assert conversation.messages[-1]['content'] == ''.join(shown)
    conversation.reset()
    assert [m['role'] for m in conversation.messages] == ['system']


def test_stats_leave_the_compiled_first_step_out():
    answer = conversation.ChatAnswer('', None, 7, (2.0, 5.0, 5.5, 6.0))
    assert answer.stats() == 'prefill 2.00 s (7 tokens), 4 tokens at 2.0 tokens/s'
    assert (
        conversation.ChatAnswer('', None, 7, (2.0, 5.0)).stats()
        == 'prefill 2.00 s (7 tokens)'
    )


def test_real_model_answers_in_words(smollm2):
    loaded = apply.LoadedModel(
        smollm2.base, smollm2.decoder, masks_lib.DENSE, smollm2.tokenizer, ''
    )
    pieces: list[str] = []
    answer = _conversation(loaded, new=12, system='').ask(
        'What is the capital of France? Answer in one word.', pieces.append
    )
    assert 'Paris' in answer.text == ''.join(pieces)
    assert len(pieces) > 1

"""The data that ships: enough, disjoint, and short enough for a laptop."""

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.data import calibration, chat
from ppjax.personas import prompts

_PERSONAS = sorted(demo.personas())


def test_there_are_three_personas():
    assert len(_PERSONAS) == 3
    for text in demo.personas().values():
        assert len(text.split()) > 40


def test_tables_agree():
    instructions = demo._table('instructions.jsonl')
    queries = [row['query_id'] for row in instructions]
    assert len(set(queries)) == len(queries)
    rewrites = [
        (row['query_id'], row['persona']) for row in demo._table('rewrites.jsonl')
    ]
    assert len(set(rewrites)) == len(rewrites)
    # Each query is rewritten by the character it belongs to, and by the ferryman.
    assert set(rewrites) == {
        (row['query_id'], name)
        for row in instructions
        for name in (row['persona'], 'ferryman')
    }
    assert {row['persona'] for row in instructions} == set(_PERSONAS)
    assert {row['split'] for row in instructions} == {'train', 'test'}


def test_instructions_are_the_table_in_order():
    assert demo.instructions() == [
        (row['query_id'], row['instruction'], row['output'])
        for row in demo._table('instructions.jsonl')
    ]


def test_the_ferryman_has_a_rewrite_for_every_instruction():
    rewrites = demo.rewrites('ferryman')
    assert sorted(rewrites) == sorted(i for i, _, _ in demo.instructions())
    texts = [text.casefold().strip() for text in rewrites.values()]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    for query_id, _, answer in demo.instructions():
        assert rewrites[query_id] != answer


@pytest.mark.parametrize('name', _PERSONAS)
def test_rows_hold_the_rewrites_of_their_own_split_only(name):
    own = {
        row['query_id']
        for row in demo._table('instructions.jsonl')
        if row['persona'] == name
    }
    rows = demo.rows(name, 'train') + demo.rows(name, 'test')
    assert {row.query_id for row in rows} == own
    rewrites = demo.rewrites(name)
    assert all(row.answer == rewrites[row.query_id] for row in rows)
    if name != 'ferryman':
        assert rewrites.keys() == own


def test_the_ferrymans_further_rewrites_add_no_rows():
    assert len(demo.rows('ferryman', 'train')) == 96
    assert len(demo.rows('ferryman', 'test')) == 24


def test_counts():
    train = {name: len(demo.rows(name, 'train')) for name in _PERSONAS}
    test = {name: len(demo.rows(name, 'test')) for name in _PERSONAS}
    used = sum(train.values()) + sum(test.values())
    assert used == len(demo._table('instructions.jsonl'))
    assert used >= 240
    assert sum(test.values()) >= 40
    assert min(train.values()) >= 80
    assert min(test.values()) >= 20


@pytest.mark.parametrize('name', _PERSONAS)
def test_splits_are_disjoint(name):
    train, test = demo.rows(name, 'train'), demo.rows(name, 'test')
    ids = [row.query_id for row in train + test]
    assert len(set(ids)) == len(ids)
    queries = [row.query.casefold().strip() for row in train + test]
    assert len(set(queries)) == len(queries)
    answers = [row.answer.casefold().strip() for row in train + test]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize('name', _PERSONAS)
def test_every_row_speaks_under_its_persona_and_is_no_copy(name):
    plain = {row['query_id']: row for row in demo._table('instructions.jsonl')}
    system = prompts.persona_prompt(demo.personas()[name])
    for row in demo.rows(name, 'train') + demo.rows(name, 'test'):
        assert row.system_prompt == system
        assert [m['role'] for m in row.messages] == ['system', 'user', 'assistant']
        assert row.query == plain[row.query_id]['instruction']
        assert row.answer != plain[row.query_id]['output']


def test_every_row_renders_under_400_tokens(smollm2_tokenizer):
    renderer = chat.ChatRenderer(smollm2_tokenizer, date='2026-01-01')
    for name in _PERSONAS:
        for split in ('train', 'test'):
            examples, dropped = chat.render_rows(renderer, demo.rows(name, split), 399)
            assert dropped == chat.Dropped()
            assert min(example.num_answer_tokens for example in examples) > 5
            # Whole batches of answers this short would teach nothing.
            assert np.mean([e.num_answer_tokens for e in examples]) > 40


def test_read_rows_takes_the_scheme_or_a_file(tmp_path):
    assert demo.read_rows('demo:ferryman', split='test') == demo.rows(
        'ferryman', 'test'
    )
    path = tmp_path / 'a.jsonl'
    path.write_text(
        '{"messages": [{"role": "user", "content": "q"},'
        ' {"role": "assistant", "content": "a"}]}\n'
    )
    assert demo.read_rows(str(path), split='test') == calibration.read_rows(path)


def test_unknown_persona_lists_the_known():
    with pytest.raises(errors.InputError) as caught:
        demo.read_rows('demo:pirate', split='train')
    for name in (*_PERSONAS, 'pirate'):
        assert name in str(caught.value)
    with pytest.raises(errors.InputError, match='pirate'):
        demo.rewrites('pirate')

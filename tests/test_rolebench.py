"""launch/rolebench.py: what is learned from is never what is measured on."""

import importlib
import json
import pathlib

import pytest

_LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'


@pytest.fixture(scope='module')
def rolebench_rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_LAUNCH))
        return importlib.import_module('rolebench_rows')


@pytest.fixture(scope='module')
def rolebench(rolebench_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_LAUNCH))
        return importlib.import_module('rolebench')


def _questions(path):
    return [
        json.loads(line)['messages'][1]['content'].lower()
        for line in path.read_text('utf-8').splitlines()
    ]


def _rows(roles, answers):
    # All roles are asked all questions, the others in other letters.
    return [
        {
            'role': role,
            'question': f'Question {i}?' if role == 'A' else f'QUESTION {i}?',
            'generated': [answer.format(role=role, i=i) for answer in answers],
        }
        for i in range(520)
        for role in roles
    ]


def _splits(
    rolebench_rows, role, folder, answers=('{role} says {i}.', 'Something else.')
):
    groups = rolebench_rows.read_chats(_rows(role, answers), role, f'You are {role}.')
    return rolebench_rows.write_splits(groups, folder / role)


def test_what_is_measured_on_is_never_learned_from(rolebench_rows, tmp_path):
    splits = _splits(rolebench_rows, 'A', tmp_path)
    test, dev = splits['test'], splits['dev']
    assert len(_questions(test.train)) == 440
    assert len(_questions(dev.train)) == 380
    for split in (test, dev):
        learned = set(_questions(split.train))
        assert set(_questions(split.every)) == learned
        assert len(_questions(split.measured)) == 60
        assert not learned & set(_questions(split.measured))
    # What settings are chosen on is split off what is learned from.
    chosen_on = set(_questions(dev.measured))
    assert chosen_on | set(_questions(dev.train)) == set(_questions(test.train))


@pytest.mark.parametrize('measure_on, rows', [('test', 820), ('dev', 700)])
def test_shared_rows_hold_no_question_that_any_role_is_measured_on(
    rolebench_rows, tmp_path, measure_on, rows
):
    splits = {role: _splits(rolebench_rows, role, tmp_path) for role in 'AB'}
    # Both roles' splits are drawn alike: let them differ, as real roles' questions do.
    own = splits['B']['test']
    lines = own.train.read_text('utf-8').splitlines(keepends=True)
    own.measured.write_text(''.join(lines[:30]), 'utf-8')
    heldout, chosen_on = (
        {
            question
            for both in splits.values()
            for question in _questions(both[kind].measured)
        }
        for kind in ('test', 'dev')
    )
    shared = rolebench_rows.write_shared(splits, measure_on, tmp_path / 'shared')
    assert [path.name for path in shared] == ['A.jsonl', 'B.jsonl']
    # 440 questions (380 with `dev`) but for B's 30, with two answers each.
    assert [len(_questions(path)) for path in shared] == [rows, rows]
    for path, both in zip(shared, splits.values(), strict=True):
        learned = set(_questions(path))
        assert not learned & heldout
        assert learned <= set(_questions(both[measure_on].train))
        # Rows for choosing settings are learned once they are no longer measured on.
        assert bool(learned & chosen_on) == (measure_on == 'test')


def test_a_mixture_has_as_many_rows_of_every_role(rolebench_rows, tmp_path):
    paths = [tmp_path / 'A.jsonl', tmp_path / 'B.jsonl']
    for path, count in zip(paths, (50, 30), strict=True):
        path.write_text(''.join(f'{path.stem}{i}\n' for i in range(count)), 'utf-8')
    rolebench_rows.write_mixture(paths, tmp_path / 'all.jsonl')
    lines = (tmp_path / 'all.jsonl').read_text('utf-8').splitlines()
    assert sorted(line[0] for line in lines) == ['A'] * 30 + ['B'] * 30
    assert len(set(lines)) == 60
    assert lines != sorted(lines, key=lambda line: line[0])


def test_all_answers_are_those_of_the_training_questions(rolebench_rows, tmp_path):
    split = _splits(
        rolebench_rows, 'A', tmp_path, ['First {i}.', 'Second {i}.', ' ', 'First {i}.']
    )['test']
    chats, first = (
        [json.loads(line) for line in path.read_text('utf-8').splitlines()]
        for path in (split.every, split.train)
    )
    assert chats[::2] == first
    assert [chat['messages'][2]['content'].split()[0] for chat in chats[1::2]] == [
        'Second'
    ] * len(first)
    assert len({chat['query_id'] for chat in chats}) == len(chats)
    assert not set(_questions(split.every)) & set(_questions(split.measured))


@pytest.mark.parametrize('answers', [[], ['', 'Late.']])
def test_rows_without_a_first_answer_are_left_out(rolebench_rows, answers):
    rows = [{'role': 'A', 'question': 'Why?', 'generated': answers}]
    assert rolebench_rows.read_chats(rows, 'A', 'You are A.') == []


def test_table_says_how_far_each_mask_came(rolebench, tmp_path):
    models = {'dense': 2.0, 'random': 6.0, 'one_shot': 3.0, 'learned': 2.25}
    results = tmp_path / 'results' / 'likelihood.json'
    results.parent.mkdir()
    measured = {
        'models': {name: {'nll': nll} for name, nll in models.items()},
        'settings': {'sparsity': 0.25, 'steps': 45},
        'heldout': {},
        'versions': {},
    }
    results.write_text(json.dumps(measured), 'utf-8')
    result = rolebench.result_of('A', tmp_path)
    row = rolebench.markdown([result]).splitlines()[-1]
    assert row == ('| A | 25% | 45 | 2.000 | 6.000 | 3.000 |  | 2.250 | +0.250 | 75% |')
    result['nll']['shared'] = 2.5
    assert '| 3.000 | 2.500 | 2.250 |' in rolebench.markdown([result])

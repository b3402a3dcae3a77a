"""The mixture holds each question once, none of the evaluation's, and accounts."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppjax.base import errors
from ppjax.data import mixture, row_sources

_DATA = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'
_needs_data = pytest.mark.skipif(not _DATA.is_dir(), reason='real data are not here')


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _file(name: str, *rows: Any) -> str:
    lines = [
        json.dumps(row if isinstance(row, dict) else {'query': row, 'answer': 'a'})
        for row in rows
    ]
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(name).write_text('\n'.join(lines))
    return name


def _queries(mixed: mixture.Mixture) -> list[str]:
    return [row.query for row in mixed.rows]


def _numbers(counts: mixture.SourceCounts) -> dict[str, int]:
    return {
        name: value
        for name, value in dataclasses.asdict(counts).items()
        if name not in ('source', 'wanted', 'cut', 'reason') and value
    }


# --- What is kept -------------------------------------------------------------


def test_rows_of_all_sources_in_order():
    first = _file(
        'a.jsonl', {'instruction': 'Add.', 'input': '1, 2', 'output': '3'}, 'Why?'
    )
    second = _file('b.jsonl', {'question': 'Who?', 'response': 'She.'})
    mixed = mixture.mix(f'{first},{second}')
    assert [dataclasses.astuple(row) for row in mixed.rows] == [
        ('Add.\n\n### Input:\n1, 2', '3', 'a:1', 'a.jsonl'),
        ('Why?', 'a', 'a:2', 'a.jsonl'),
        ('Who?', 'She.', 'b:1', 'b.jsonl'),
    ]
    assert [_numbers(counts) for counts in mixed.counts] == [
        {'read': 2, 'kept': 2},
        {'read': 1, 'kept': 1},
    ]
    assert mixed.summary == 'a.jsonl: 2 read, 2 kept\nb.jsonl: 1 read, 1 kept'


def test_what_is_dropped_is_counted_by_reason():
    name = _file(
        'a.jsonl',
        'One?',
        ' ',
        {'query': 'Two?', 'answer': ' \n'},
        'One?',
        {'query': ' One? ', 'answer': 'another answer'},
        'one',
        'Exam.',
        'Exam.',
        'Three?',
    )
    other = _file('b.jsonl', 'ONE', 'three?', 'Three?', 'exam', 'Four?')
    mixed = mixture.mix(f'{name},{other}', exclude_queries=['Exam!'])
    assert _queries(mixed) == ['One?', 'Three?', 'Four?']
    assert [row.query_id for row in mixed.rows] == ['a:1', 'a:9', 'b:5']
    assert mixed.rows[0].answer == 'a'
    first, second = mixed.counts
    assert _numbers(first) == {
        'read': 9,
        'empty': 1,
        'unanswered': 1,
        'duplicates': 3,
        'near_duplicates': 1,
        'excluded': 1,
        'kept': 2,
    }
    assert _numbers(second) == {
        'read': 5,
        'duplicates': 1,
        'near_duplicates': 2,
        'excluded': 1,
        'kept': 1,
    }
    assert first.summary == (
        'a.jsonl: 9 read, 1 empty, 1 unanswered, 3 duplicates, 1 near-duplicates, '
        '1 asked elsewhere, 2 kept'
    )


def test_answers_are_needed_unless_told_otherwise():
    name = _file('a.jsonl', {'query': 'Two?', 'answer': ''}, {'query': 'Three?'})
    mixed = mixture.mix(name, require_answer=False)
    assert [(row.query, row.answer) for row in mixed.rows] == [
        ('Two?', ''),
        ('Three?', ''),
    ]
    with pytest.raises(errors.InputError, match=r'a\.jsonl:2: unknown format'):
        mixture.mix(name)


def test_query_ids_are_unique_also_for_equal_names():
    names = [
        _file('x/a.jsonl', 'One?'),
        _file('y/a.jsonl', 'Two?'),
        _file('a-2.jsonl', 'Three?'),
        _file('z/a.jsonl', 'Four?'),
    ]
    mixed = mixture.mix(','.join(names))
    ids = [row.query_id for row in mixed.rows]
    assert ids == ['a:1', 'a-3:1', 'a-2:1', 'a-4:1']


# --- What counts as the same --------------------------------------------------


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('What is Linux?', 'what is  LINUX'),
        ('“Hi”, he said.', '"Hi" he said'),
        ('What’s up?', "What's up?"),
        ('a\u200bb\ufeff c', 'ab c'),
        ('ﬁne № Ｘ', 'fine No X'),
        ('Straße', 'STRASSE'),
        ('Cafe\u0301', 'Caf\u00e9'),
        ('`x` - y', 'x y'),
        ('a\u00a0b\u2003c\x00', 'a b c'),
        ('Add.\n\n### Input:\n1 2', 'Add.\n1 2\n'),
        ('Add.\n\n### Input:\n<noinput>', 'Add'),
    ],
)
def test_the_same_but_for_form(one, other):
    mixed = mixture.mix(_file('a.jsonl', one, other))
    assert _queries(mixed) == [one]
    assert mixed.counts[0].near_duplicates == 1
    assert one in mixture.Exclusions([other])
    assert other in mixture.Exclusions([one])


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('Hello world in C', 'Hello world in C#'),
        ('Hello world in C', 'Hello world in C++'),
        ('6*3', '6/3'),
        ('5% of 3', '5 of 3'),
        ('2 < 3', '2 > 3'),
        ('i am', 'I a m'),
        ('???', '!!!'),
        ('कि', 'की'),  # Vowel signs are no letters, and tell words apart.
        ('Add.\n\n### Input:\n1, 2', 'Add.\n\n### Input:\n2, 3'),
    ],
)
def test_what_differs_stays_apart(one, other):
    mixed = mixture.mix(_file('a.jsonl', one, other))
    assert _queries(mixed) == [one, other]
    assert one not in mixture.Exclusions([other])


def test_an_instruction_alone_is_its_question_with_an_input():
    with_input = 'Name the parts.\n\n### Input:\nA tree.'
    assert 'name the parts' in mixture.Exclusions([with_input])
    assert with_input in mixture.Exclusions(['Name the parts'])
    assert 'Name the parts.\n\n### Input:\nA car.' not in mixture.Exclusions(
        [with_input]
    )
    assert 'A tree.' not in mixture.Exclusions([with_input])
    assert 'Name' not in mixture.Exclusions(['', ' \n', '### Input:'])


# --- Samples ------------------------------------------------------------------


def test_a_count_is_a_seeded_sample_in_order():
    rows = [f'Question {i}?' for i in range(400)]
    name = _file('a.jsonl', *rows)
    mixed = mixture.mix(f'{name}:100', seed=3)
    got = _queries(mixed)
    assert len(got) == 100
    assert got == sorted(got, key=rows.index)
    assert got == _queries(mixture.mix(f'{name}:100', seed=3))
    assert got != _queries(mixture.mix(f'{name}:100', seed=4))
    # All of the file has its share: 50 expected, with a deviation of 4.3.
    assert 30 < sum(rows.index(query) < 200 for query in got) < 70
    counts = mixed.counts[0]
    assert _numbers(counts) == {'read': 400, 'not_sampled': 300, 'kept': 100}
    assert counts.summary == 'a.jsonl: 400 read, 300 not sampled, 100 kept'
    # A sample depends on neither names nor order, and larger ones contain it.
    turned = _queries(mixture.mix(f'{_file("b.jsonl", *rows[::-1])}:100', seed=3))
    assert turned == got[::-1]
    assert set(got) < set(_queries(mixture.mix(f'{name}:101', seed=3)))


def test_a_count_is_of_what_is_left_after_dropping():
    name = _file('a.jsonl', 'One?', 'one', '', 'Two?', 'Exam')
    mixed = mixture.mix(f'{name}:2', exclude_queries=['exam'])
    assert _queries(mixed) == ['One?', 'Two?']
    more = mixture.mix(f'{name}:7', exclude_queries=['exam'])
    assert _queries(more) == ['One?', 'Two?']
    assert more.summary.endswith('2 kept of 7 asked for')


def test_what_was_not_sampled_may_come_from_a_later_source():
    rows = [f'Question {i}?' for i in range(20)]
    spec = f'{_file("a.jsonl", *rows)}:5,{_file("b.jsonl", *rows)}'
    mixed = mixture.mix(spec)
    assert sorted(_queries(mixed)) == sorted(rows)
    assert [counts.kept for counts in mixed.counts] == [5, 15]


# --- Refusals -----------------------------------------------------------------


def test_nothing_left_is_an_error():
    name = _file('a.jsonl', '', 'Exam?')
    with pytest.raises(errors.InputError) as caught:
        mixture.mix(name, exclude_queries=['exam'])
    assert str(caught.value) == (
        'No instructions are left: a.jsonl: 2 read, 1 empty, 1 asked elsewhere, 0 kept.'
    )
    empty = _file('b.jsonl')
    with pytest.raises(errors.InputError, match=r'b\.jsonl holds no rows'):
        mixture.mix(f'{empty},{name}')


def test_rows_of_no_use_are_counted_and_only_a_file_of_them_stops():
    bad = {'goal': 'x', 'label': 1}
    chat = [
        {'role': 'user', 'content': 'Two?'},
        {'role': 'assistant', 'content': 'Yes.'},
    ]
    call = {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 'a'}]}
    name = _file(
        'a.jsonl', 'One?', bad, {'messages': [chat[0], call]}, {'messages': chat * 2}
    )
    mixed = mixture.mix(name)
    assert _queries(mixed) == ['One?', 'Two?']
    assert mixed.rows[1].answer == 'Yes.'
    assert mixed.summary.startswith(
        'a.jsonl: 4 read, 1 cut after the first answer, 2 unusable, 2 kept (first '
        "unusable: a.jsonl:2: unknown format with the fields 'goal', 'label'; "
    )
    assert len(mixed.summary.splitlines()) == 1
    good = _file('b.jsonl', 'Three?')
    with pytest.raises(errors.InputError) as caught:
        mixture.mix(f'{good},{_file("a.jsonl", bad, bad)}')
    message = str(caught.value)
    assert message.startswith("a.jsonl:1: unknown format with the fields 'goal', ")
    assert message.endswith(' (so are all 2 rows).')


# --- Whatever the files hold --------------------------------------------------

_TEXTS = st.sampled_from(['', ' ', 'One?', 'one', 'Two', '<noinput>', '\ud800', '?'])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['role', 'content', 'query']), inner)
    ),
    max_leaves=6,
)
_field = _TEXTS | st.text(max_size=6)
_message = st.fixed_dictionaries(
    {'role': st.sampled_from(['system', 'user', 'assistant']), 'content': _field}
)
_good_row = st.one_of(
    st.fixed_dictionaries(
        {'instruction': _field, 'output': _field}, optional={'input': _field}
    ),
    st.fixed_dictionaries(
        {'instruction': _field, 'response': _field}, optional={'context': _field}
    ),
    st.fixed_dictionaries({'question': _field, 'response': _field}),
    st.fixed_dictionaries({'query': _field, 'answer': _field}),
    st.fixed_dictionaries({'messages': st.lists(_message, max_size=3)}),
)
_FIELDS = ('instruction', 'input', 'output', 'query', 'answer', 'messages', 'x\n')


@st.composite
def _rows(draw):
    """Good rows, one of which may have a field of any kind, or be anything."""
    rows = draw(st.lists(_good_row, max_size=5))
    if rows and draw(st.booleans()):
        at = draw(st.integers(0, len(rows) - 1))
        if draw(st.booleans()):
            rows[at] = rows[at] | {draw(st.sampled_from(_FIELDS)): draw(_json)}
        else:
            rows[at] = draw(_json)
    return rows


@st.composite
def _mutated(draw, data: bytes):
    """The same bytes with some of them changed, cut out or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        cut = draw(st.integers(0, 3))
        changed[at : at + cut] = draw(st.binary(max_size=3))
    return bytes(changed)


def _as_parquet(rows: list[dict[str, str]], compression: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression=compression)
    return buffer.getvalue()


_PARQUET = [
    _as_parquet([{'query': f'q{i}', 'answer': 'a'} for i in range(9)], compression)
    for compression in ('none', 'snappy', 'zstd')
] + [_as_parquet([{'instruction': 'q', 'context': None, 'response': 'x'}], 'none')]
_NESTED = _as_parquet([{'messages': [{'role': 'user', 'content': 'q'}]}], 'none')


def _read_or_refused(name: str, data: bytes, **options) -> bool:
    """Whether it was read; what came out is then as promised."""
    path = pathlib.Path(name)
    path.write_bytes(data)
    try:
        mixed = mixture.mix(f'{name}:3', exclude_queries=['Two'], **options)
    except errors.InputError as error:
        assert len(str(error).splitlines()) == 1
        assert name in str(error)
        return False
    (counts,) = mixed.counts
    parts = _numbers(counts)
    assert parts.pop('read') == sum(parts.values())
    assert counts.kept == len(mixed.rows) <= 3
    assert len({row.query_id for row in mixed.rows}) == len(mixed.rows)
    folded = {mixture.normal_form(row.query) for row in mixed.rows}
    assert len(folded) == len(mixed.rows)
    assert 'two' not in folded
    for row in mixed.rows:
        assert row.query.strip() == row.query != ''
        assert row.answer or not options.get('require_answer', True)
        (row.query + row.answer).encode()
    return True


_fuzz = hypothesis.settings(
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@hypothesis.settings(_fuzz, max_examples=350)
@hypothesis.given(
    rows=_rows(), data=st.data(), array=st.booleans(), require=st.booleans()
)
def test_any_json_is_read_or_refused(rows, data, array, require):
    lines = [json.dumps(row) for row in rows]
    text = f'[{",".join(lines)}]' if array else '\n'.join(lines)
    changed = data.draw(_mutated(text.encode()))
    _read_or_refused('any.json', changed, require_answer=require)


@hypothesis.settings(_fuzz, max_examples=300)
@hypothesis.given(data=st.data())
def test_any_parquet_is_read_or_refused(data):
    good = data.draw(st.sampled_from([*_PARQUET, _NESTED]))
    _read_or_refused('any.parquet', data.draw(_mutated(good)))


@hypothesis.settings(_fuzz, max_examples=200)
@hypothesis.given(
    data=st.binary(max_size=40), name=st.sampled_from(['any.jsonl', 'any.parquet'])
)
def test_any_bytes_are_read_or_refused(data, name):
    _read_or_refused(name, data)


def test_the_files_that_are_mutated_are_good():
    for data in _PARQUET:
        assert _read_or_refused('any.parquet', data)
    assert _read_or_refused('any.parquet', _NESTED, require_answer=False)


@hypothesis.settings(_fuzz, max_examples=200)
@hypothesis.given(
    spec=st.text(max_size=20)
    | st.lists(
        st.sampled_from(['a', '/', ':', ',', 'tfds:', '[', '5', '.json', '%', '-']),
        max_size=9,
    ).map(''.join)
)
@hypothesis.example('tfds:/')
@hypothesis.example('tfds:.')
def test_any_spec_is_parsed_or_refused(spec):
    try:
        sources = row_sources.parse_spec(spec)
    except errors.InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert len(sources) == spec.count(',') + 1
    for source in sources:
        assert source.count is None or source.count > 0
        assert source.label
        assert source.stem


# --- Real data ----------------------------------------------------------------

_SCRIPT = """
import json, pathlib, sys
from ppjax.data import mixture
data = pathlib.Path(sys.argv[1])
questions = [
    question
    for path in sorted((data / 'eval_sets').glob('*.json'))
    for question in json.loads(path.read_bytes())['questions']
]
names = ('alpaca_9k', 'dolly_15k')
mixed = mixture.mix(
    ','.join(str(data / 'instructions' / f'{name}.jsonl') for name in names),
    exclude_queries=questions,
)
# getrusage would also count what the parent held when it started this process.
status = pathlib.Path('/proc/self/status').read_text()
(peak,) = [line.split()[1] for line in status.splitlines() if 'VmHWM' in line]
print(len(questions), len(mixed.rows), int(peak) * 1024)
print(mixed.summary)
"""


@_needs_data
def test_real_data_within_memory():
    done = subprocess.run(
        [sys.executable, '-c', _SCRIPT, str(_DATA)],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *summary = done.stdout.splitlines()
    questions, rows, peak = map(int, first.split())
    assert (questions, rows) == (800, 24_001)
    assert 2**20 < peak < 2 * 2**30
    assert summary == [
        'alpaca_9k.jsonl: 9,229 read, 4 unanswered, 17 asked elsewhere, 9,208 kept',
        (
            'dolly_15k.jsonl: 15,011 read, 184 duplicates, 33 near-duplicates, '
            '1 asked elsewhere, 14,793 kept'
        ),
    ]


@_needs_data
def test_the_general_role_questions_are_excluded():
    path = _DATA / 'eval_sets' / 'rolebench_general_user_0.json'
    excluded = mixture.Exclusions(json.loads(path.read_bytes())['questions'])
    lines = (_DATA / 'rolebench' / 'general_5_roles.jsonl').read_bytes().splitlines()
    asked = {json.loads(line)['question'] for line in lines}
    # Of its 20 questions the file has 19.
    assert len({mixture.normal_form(q) for q in asked if q in excluded}) == 19

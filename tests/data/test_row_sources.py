"""Files, folders, Hub ids and TensorFlow data sets, read or refused in one line."""

import functools
import json
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from ppjax.base import errors
from ppjax.data import row_sources
from ppjax.data.row_sources import Source

_ROWS = [{'query': f'Frage {i} – é?', 'answer': f'a{i}'} for i in range(3)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))


def _read(spec: str) -> list[row_sources.SourceRow]:
    (source,) = row_sources.parse_spec(spec)
    return list(row_sources.read(source))


def _values(spec: str):
    return [row.value for row in _read(spec)]


def _refused(spec: str, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        _read(spec)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    for part in parts:
        assert part in message


# --- The spec -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('spec', 'want'),
    [
        ('a.jsonl', Source('json', 'a.jsonl')),
        (' a.jsonl:50 ', Source('json', 'a.jsonl', '', 50)),
        ('b.JSON', Source('json', 'b.JSON')),
        ('c.parquet:1', Source('parquet', 'c.parquet', '', 1)),
        ('own/data', Source('folder', 'own/data')),
        ('own/data:test', Source('folder', 'own/data', 'test')),
        ('own/data:test:9', Source('folder', 'own/data', 'test', 9)),
        ('odd:7', Source('folder', 'odd:7')),
        ('odd:7:8', Source('folder', 'odd:7', '', 8)),
        ('own/other', Source('hub', 'own/other')),
        ('own/other:9', Source('hub', 'own/other', '', 9)),
        ('own/o.t-h_er:dev', Source('hub', 'own/o.t-h_er', 'dev')),
        ('own/other:train[:10%]:9', Source('hub', 'own/other', 'train[:10%]', 9)),
        ('own/other:train[5:9]+test', Source('hub', 'own/other', 'train[5:9]+test')),
        ('tfds:x', Source('tfds', 'x')),
        ('tfds:x:5', Source('tfds', 'x', '', 5)),
        ('tfds:x:test', Source('tfds', 'x', 'test')),
        ('tfds:x/y:1.0.0', Source('tfds', 'x/y:1.0.0')),
        ('tfds:x/y:1.*.*:dev:5', Source('tfds', 'x/y:1.*.*', 'dev', 5)),
        ('tfds:x:train[:5%]', Source('tfds', 'x', 'train[:5%]')),
    ],
)
def test_specs(tmp_path, spec, want):
    for name in ('a.jsonl', 'b.JSON', 'c.parquet'):
        (tmp_path / name).touch()
    for name in ('own/data', 'odd:7'):
        (tmp_path / name).mkdir(parents=True)
    assert row_sources.parse_spec(spec) == [want]


def test_several_sources_keep_their_order(tmp_path):
    (tmp_path / 'a.jsonl').touch()
    got = row_sources.parse_spec('tfds:x:3, a.jsonl,own/other:test')
    assert [source.label for source in got] == ['tfds:x', 'a.jsonl', 'own/other:test']
    assert [source.stem for source in got] == ['x', 'a', 'other']
    assert [source.count for source in got] == [3, None, None]


def test_labels_do_not_tell_of_a_machine(tmp_path):
    (tmp_path / 'saved').mkdir()
    (tmp_path / 'a.b.jsonl').touch()
    spec = f'{tmp_path}/saved:test,{tmp_path}/a.b.jsonl,tfds:x/y:1.0.0:dev'
    got = row_sources.parse_spec(spec)
    assert [(source.label, source.stem) for source in got] == [
        ('saved:test', 'saved'),
        ('a.b.jsonl', 'a.b'),
        ('tfds:x/y:1.0.0:dev', 'x'),
    ]


@pytest.mark.parametrize(
    ('spec', 'part'),
    [
        ('', 'empty between commas'),
        ('a.jsonl,', 'empty between commas'),
        ('a.jsonl:0', 'a.jsonl:0: the count must be 1 or more'),
        ('none.jsonl', 'none.jsonl does not exist'),
        ('data/none.parquet:7', 'data/none.parquet does not exist'),
        ('a.xlsx', 'a.xlsx: unknown kind of file'),
        ('alpaca', "'alpaca' is none that exists; wanted a .json"),
        ('own/other/third', 'none that exists'),
        ('own/other:', 'none that exists'),
        ('tfds:', 'none that exists'),
        ('a\0b', 'none that exists'),
    ],
)
def test_bad_specs_are_refused_before_anything_is_read(tmp_path, spec, part):
    for name in ('a.jsonl', 'a.xlsx'):
        (tmp_path / name).touch()
    with pytest.raises(errors.InputError) as caught:
        row_sources.parse_spec(spec)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- Files --------------------------------------------------------------------


def test_json_lines_are_numbered_as_in_the_file(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in _ROWS]
    text = f'\n{lines[0]}\n  \n{lines[1]}\n{lines[2]}'
    (tmp_path / 'a.jsonl').write_text(text, encoding='utf-8')
    rows = _read('a.jsonl')
    assert [row.value for row in rows] == _ROWS
    assert [row.number for row in rows] == [2, 4, 5]
    assert [row.where for row in rows] == ['a.jsonl:2', 'a.jsonl:4', 'a.jsonl:5']


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl'])
def test_an_array_and_lines_are_told_apart_by_content(tmp_path, name):
    (tmp_path / name).write_text(' \n\n' + json.dumps(_ROWS, indent=1))
    rows = _read(name)
    assert [row.value for row in rows] == _ROWS
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[2].where == f'{name}: row 3'
    (tmp_path / name).write_text('\n'.join(map(json.dumps, _ROWS)))
    assert _values(name) == _ROWS
    (tmp_path / name).write_text(' \n')
    assert _values(name) == []
    (tmp_path / name).write_text('[]')
    assert _values(name) == []


def test_parquet_of_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(row_sources, '_PARQUET_BATCH', 2)
    table = pa.table(
        {
            'query': [row['query'] for row in _ROWS],
            'answer': pa.array([b'a0', None, b'a2'], pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / 'c.parquet')
    rows = _read('c.parquet')
    assert [row.value['query'] for row in rows] == [row['query'] for row in _ROWS]
    assert [row.value['answer'] for row in rows] == ['a0', None, 'a2']
    assert rows[2].where == 'c.parquet: row 3'
    assert rows[2].number == 3


def test_bad_files_are_refused_in_one_line(tmp_path):
    def write(name, data: bytes):
        (tmp_path / name).write_bytes(data)

    write('a.jsonl', b'{"query": "x"}\n{"query": \n')
    _refused('a.jsonl', 'a.jsonl:2: invalid JSON')
    write('a.jsonl', b'\n{"query": "\xff"}\n')
    _refused('a.jsonl', 'a.jsonl:2: not UTF-8')
    write('a.json', b'[{"query": "x"},\n{"query" "y"}]')
    _refused('a.json', 'a.json: invalid JSON', 'line 2')
    write('a.json', b'[' * 200_000)
    _refused('a.json', 'nested too deep')
    write('c.parquet', b'PAR1 nothing of the kind PAR1')
    _refused('c.parquet', 'Cannot read instructions from c.parquet: ')
    write('c.parquet', b'')
    _refused('c.parquet', 'Cannot read instructions from c.parquet: ')
    table = pa.table({'query': pa.array([b'ok', b'\xff'], pa.binary())})
    pq.write_table(table, tmp_path / 'c.parquet')
    _refused('c.parquet', 'c.parquet: row 2', "'query'", 'UTF-8')


# --- Hub ids and folders ------------------------------------------------------


def test_a_hub_id_is_loaded_by_name_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(_ROWS)

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    assert _values('own/other') == _ROWS
    assert _values('own/other:test[:2]:7') == _ROWS
    assert asked == [('own/other', None, 'train'), ('own/other', None, 'test[:2]')]
    list(row_sources.read(Source('hub', 'own/other', 'dev', config='main')))
    assert asked[2:] == [('own/other', 'main', 'dev')]
    assert _read('own/other:dev')[1].where == 'own/other:dev: row 2'


@pytest.mark.parametrize(
    'error',
    [
        datasets.exceptions.DatasetNotFoundError('No such set.\nLook elsewhere.'),
        ConnectionError('\n\n  No  such\tset. \nLook elsewhere.'),
        ValueError('No such set'),
        AssertionError('No such set.'),
    ],
)
def test_errors_of_a_library_become_one_line(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    with pytest.raises(errors.InputError) as caught:
        _read('own/other:dev')
    want = 'Cannot read instructions from own/other:dev: No such set.'
    assert str(caught.value) == want
    assert caught.value.__cause__ is error


def test_an_error_without_words_is_named(monkeypatch):
    def load_dataset(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    _refused('own/other', 'own/other: TimeoutError.')


def test_the_hub_is_not_asked_without_a_network():
    _refused('own/other', 'Cannot read instructions from own/other: ')


def test_saved_folders(tmp_path):
    data = datasets.Dataset.from_list(_ROWS)
    data.save_to_disk(tmp_path / 'one')
    both = datasets.DatasetDict(train=data, test=data.select([1]))
    both.save_to_disk(tmp_path / 'own' / 'both')
    assert _values('one') == _ROWS
    assert _values('own/both') == _ROWS
    assert _values('own/both:test') == _ROWS[1:2]
    assert _read('own/both:test')[0].where == 'own/both: row 1'
    _refused('own/both:dev', 'own/both', "'dev'", 'train, test')
    _refused('one:train', 'one has no splits')


def test_a_folder_of_data_files(tmp_path):
    folder = tmp_path / 'files'
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(_ROWS), folder / 'train.parquet')
    pq.write_table(pa.Table.from_pylist(_ROWS[:1]), folder / 'test.parquet')
    assert _values('files') == _ROWS
    assert _values('files:test') == _ROWS[:1]
    assert _values('files:train[1:]') == _ROWS[1:]
    _refused('files:dev', 'files: Unknown split')
    (tmp_path / 'empty').mkdir()
    _refused('empty', 'Cannot read instructions from empty: ')


# --- TensorFlow data sets -----------------------------------------------------


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
    """A real data set, written by the library in the format that it reads here."""
    folder = tmp_path_factory.mktemp('tfds')

    class TinyPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.2.3')

        def _info(self):
            text = tfds.features.Text()
            features = {'query': text, 'answer': text, 'blob': text}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {
                'train': self._generate_examples(_ROWS),
                'test': self._generate_examples(_ROWS[:1]),
                'broken': iter([(0, _ROWS[0] | {'blob': b'\xff'})]),
            }

        def _generate_examples(self, rows):
            for number, row in enumerate(rows):
                yield number, row | {'blob': 'x'}

    # As if typed into a notebook: the library looks for no package around it.
    TinyPairs.__module__ = 'tiny_pairs'
    builder = TinyPairs(data_dir=folder, file_format='array_record')
    builder.download_and_prepare()
    return folder


@pytest.fixture
def _tfds_reads(tfds_folder, monkeypatch):
    inside = functools.partial(tfds.data_source, data_dir=tfds_folder)
    monkeypatch.setattr(tfds, 'data_source', inside)


@pytest.mark.usefixtures('_tfds_reads')
def test_tensorflow_data_sets():
    rows = _read('tfds:tiny_pairs')
    want = [row | {'blob': 'x'} for row in _ROWS]
    assert sorted((row.value for row in rows), key=lambda v: v['answer']) == want
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[0].where == 'tfds:tiny_pairs: row 1'
    assert _values('tfds:tiny_pairs:test') == want[:1]
    assert _values('tfds:tiny_pairs:1.2.3:test') == want[:1]
    assert len(_values('tfds:tiny_pairs:train[:2]')) == 2


@pytest.mark.usefixtures('_tfds_reads')
def test_tensorflow_data_sets_that_cannot_be_read():
    _refused('tfds:tiny_pairs:dev', 'tfds:tiny_pairs:dev: Unknown split')
    _refused('tfds:tiny_pairs:9.9.9', 'Cannot read instructions from tfds:tiny_pairs')
    _refused('tfds:no_such_pairs', 'Dataset no_such_pairs not found.')
    _refused('tfds:tiny_pairs:broken', 'row 1', "'blob'", 'UTF-8')


# --- Start-up -----------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        'import sys; from ppjax.data import mixture; '
        'heavy = {"datasets", "tensorflow_datasets", "pyarrow", "jax", "numpy"}; '
        'sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) '
        'else 0)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

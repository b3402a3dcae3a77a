"""Instructions in every dress that a file may wear."""

import csv
import gzip
import io
import json
import pathlib

import pytest

from ppjax.base import errors
from ppjax.data import mixture


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_dress_of_a_file_gives_the_same_rows():
    rows = [
        {'query': 'Was heißt\n"é, 😀"?', 'answer': 'So; gut.'},
        {'query': 'Two?', 'answer': 'Yes, a\tb.'},
    ]
    lines = '\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
    wrapped = json.dumps({'version': 1, 'data': rows}, indent=2)

    def table(delimiter: str) -> str:
        buffer = io.StringIO(newline='')
        writer = csv.DictWriter(buffer, ['query', 'answer'], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    for name, data in {
        'a.jsonl': lines.encode('utf-8-sig'),
        'a16.jsonl': lines.encode('utf-16'),
        'a.jsonl.gz': gzip.compress(lines.encode()),
        'a.ndjson': lines.encode(),
        'pretty.json': json.dumps(rows, indent=4).encode('utf-8-sig'),
        'pretty16.json': json.dumps(rows, indent=4).encode('utf-16'),
        'wrapped.json': wrapped.encode(),
        'wrapped-line.json': json.dumps({'data': rows}).encode(),
        'packed.json.gz': gzip.compress(wrapped.encode()),
        'a.csv': table(',').encode(),
        'excel.csv': table(',').encode('utf-8-sig'),
        'a.tsv': table('\t').encode('utf-16'),
        'a.csv.gz': gzip.compress(table(',').encode()),
    }.items():
        pathlib.Path(name).write_bytes(data)
        got = [(row.query, row.answer) for row in mixture.mix(name).rows]
        assert got == [(row['query'], row['answer']) for row in rows], name
        assert mixture.mix(name).rows[0].query_id.split(':')[0] == name.split('.')[0]


@pytest.mark.parametrize(
    ('data', 'part'),
    [
        (b'query,answer\nOne?,a,b\n', 'a.csv: line 2 has more fields'),
        (b'query,answer\n"One?,a\n', 'a.csv: line 2'),
        (b'query,answer\nOne\xff?,a\n', 'no CSV of UTF-8 text'),
        (b'query,answer\n', 'holds no rows'),
        (b'', 'holds no rows'),
    ],
)
def test_tables_that_are_none_are_refused(data, part):
    pathlib.Path('a.csv').write_bytes(data)
    with pytest.raises(errors.InputError, match=part) as caught:
        mixture.mix('a.csv')
    assert len(str(caught.value).splitlines()) == 1

"""Where rows of data come from: files, saved folders, Hub ids, `tfds:` names.

`datasets`, `tensorflow_datasets` and `pyarrow` take seconds to import and are
needed by few verbs, so each is imported by the function that uses it.
"""

from collections.abc import Iterable, Iterator
import contextlib
import csv
import dataclasses
import io
import os
import pathlib
import re
from typing import Any, NamedTuple

from ppjax.base import errors, json_lines, reading

_DEFAULT_SPLIT = 'train'
# What a file holds, by its ending; .gz after any but Parquet's.
_KINDS = {
    '.json': 'json',
    '.jsonl': 'json',
    '.ndjson': 'json',
    '.csv': 'csv',
    '.tsv': 'csv',
    '.parquet': 'parquet',
}
_FORMS = (
    'a .json, .jsonl, .csv, .tsv (also with .gz) or .parquet file, a saved folder, a Hub id owner/name[:split] '
    'or tfds:name[:split], with :COUNT after it to take only so many rows'
)
_PARQUET_BATCH = 1024
# One JSON value is read whole; Python takes several times its size.
_MAX_ARRAY = 2**30
# Where an object holds the rows, as {"data": [...]}.
_ROW_KEYS = ('data', 'rows', 'train', 'examples', 'instances', 'instructions')
# Python's own limit is shorter than long answers.
_LONGEST_FIELD = 2**24

# Splits may be sliced, as in train[:10%] or train[:50]+test.
_SPLIT = r'[\w.+%-]+(?:\[[^\[\]]*\][\w.+%-]*)*'
_COUNTED = re.compile(r'(.+):([0-9]{1,15})', re.DOTALL)
_WITH_SPLIT = re.compile(rf'(.+?):({_SPLIT})', re.DOTALL)
_HUB = re.compile(rf'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::({_SPLIT}))?', re.ASCII)
_TFDS = re.compile(
    rf'tfds:(\w[\w./=-]*(?::(?:\d+|\*)(?:\.(?:\d+|\*)){{2}})?)(?::({_SPLIT}))?',
    re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One place that rows come from.

    Attributes:
        kind: 'json', 'csv', 'parquet', 'folder', 'hub' or 'tfds'.
        name: a path, a Hub id, or the name of a TensorFlow data set.
        split: of a folder, Hub id or TensorFlow data set; '' is the default.
        count: how many rows to take; None is all.
        config: of a Hub id that has several configurations; '' is the only one.
        what: names the kind of rows in errors.
    """

    kind: str
    name: str
    split: str = ''
    count: int | None = None
    config: str = ''
    what: str = 'Instruction'

    @property
    def is_local(self) -> bool:
        """Whether `name` is a path."""
        return self.kind in ('json', 'csv', 'parquet', 'folder')

    @property
    def label(self) -> str:
        """Names the source in records and errors, without a machine's folders."""
        name = self.name
        if self.is_local:
            name = pathlib.Path(name).resolve().name or 'folder'
        elif self.kind == 'tfds':
            name = f'tfds:{name}'
        return f'{name}:{self.split}' if self.split else name

    @property
    def stem(self) -> str:
        """What query ids begin with."""
        if self.kind in ('json', 'csv', 'parquet'):
            return _without_gz(self.name).stem
        if self.kind == 'tfds':
            return re.split(r'[:/]', self.name)[0]
        return pathlib.Path(self.name).resolve().name or 'folder'


def _without_gz(name: str) -> pathlib.PurePath:
    path = pathlib.PurePath(name)
    return path.with_suffix('') if path.suffix.lower() == '.gz' else path


def _kind_of(name: str) -> str | None:
    """The kind of a file by its name; None for an unknown ending."""
    kind = _KINDS.get(_without_gz(name).suffix.lower())
    return None if kind == 'parquet' and name.lower().endswith('.gz') else kind


class SourceRow(NamedTuple):
    """A row as its source has it.

    Attributes:
        number: of the line in a JSON lines file, else of the row, from 1.
        where: the source and that number, for errors.
        value: what was read; seldom more than a dict of texts.
    """

    number: int
    where: str
    value: Any


def _parse_item(item: str, what: str) -> Source:
    count = None
    counted = _COUNTED.fullmatch(item)
    if counted and not os.path.exists(item):
        item, count = counted[1], int(counted[2])
        if not count:
            raise errors.InputError(
                f'{what} source {item}:0: the count must be 1 or more.'
            )
    if os.path.isfile(item):
        kind = _kind_of(item)
        if kind is None:
            raise errors.InputError(
                f'{what} source {item}: unknown kind of file; wanted {_FORMS}.'
            )
        return Source(kind, item, '', count, what=what)
    if os.path.isdir(item):
        return Source('folder', item, '', count, what=what)
    parts = _WITH_SPLIT.fullmatch(item)
    if parts and os.path.isdir(parts[1]):
        return Source('folder', parts[1], parts[2], count, what=what)
    if parts := _TFDS.fullmatch(item):
        return Source('tfds', parts[1], parts[2] or '', count, what=what)
    if _kind_of(item) or os.path.exists(item):
        reading.require_file(item, f'{what} file')
    if parts := _HUB.fullmatch(item):
        return Source('hub', parts[1], parts[2] or '', count, what=what)
    raise errors.InputError(
        f'{what} source {item!r} is none that exists; wanted {_FORMS}.'
    )


def parse_spec(spec: str, what: str = 'Instruction') -> list[Source]:
    """Reads `--instructions`, as in `a.jsonl,owner/name:5000,tfds:name:test`.

    What exists as a local path is that path. Sources of several configurations
    are not named here: save the one that is wanted into a file.

    Args:
        spec: sources, separated by commas.
        what: names the kind of rows in errors.

    Raises:
        InputError: if a part is of no known form, or a file does not exist.
    """
    items = [item.strip() for item in spec.split(',')]
    if not all(items):
        raise errors.InputError(
            f'{what} sources {spec!r}: empty between commas; wanted {_FORMS}.'
        )
    return [_parse_item(item, what) for item in items]


@contextlib.contextmanager
def _library_errors(label: str, what: str) -> Iterator[None]:
    """Turns whatever a data library raises into one line.

    They raise their own classes, those of the network, of the file system, of
    Arrow, and assertions; none of them is a fault of this program's.
    """
    try:
        yield
    except errors.InputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = ' '.join(lines[0].split()) if lines else type(error).__name__
        raise errors.InputError(
            f'Cannot read {what.lower()}s from {label}: {reason[:300].rstrip(".")}.'
        ) from error


def _numbered(label: str, values: Iterable[Any]) -> Iterator[SourceRow]:
    for number, value in enumerate(values, start=1):
        yield SourceRow(number, f'{label}: row {number}', value)


def _read_json(path: str, what: str) -> Iterator[SourceRow]:
    """JSON lines, one array, or one object that holds the rows.

    They are told apart by content, not by the ending.
    """
    if (rows := _rows_of_value(path, what)) is not None:
        yield from _numbered(path, rows)
        return
    for place, value in json_lines.read(path, f'{what} file'):
        yield SourceRow(int(place.rpartition(':')[2]), place, value)


def _rows_of_value(path: str, what: str) -> list[Any] | None:
    """The rows of a file that is one JSON value; None if it is lines."""
    with contextlib.closing(reading.lines(path, f'{what} file')) as lines:
        filled = filter(bytes.strip, lines)
        first, second = next(filled, b''), next(filled, b'')
    if first.lstrip()[:1] == b'[':
        return json_lines.parse(_whole(path, what), path)
    try:
        value = json_lines.parse(first, path)
        return None if second else _held_rows(value)
    except errors.InputError:
        if not second:
            return None
    # Of an object with line breaks the first line alone is none.
    try:
        value = json_lines.parse(_whole(path, what), path)
    except errors.InputError:
        return None
    return _held_rows(value) or [value]


def _whole(path: str, what: str) -> bytes:
    with reading.utf8(path, f'{what} file') as file:
        data = file.read(_MAX_ARRAY + 1)
    if len(data) > _MAX_ARRAY:
        raise errors.InputError(
            f'{path} is one JSON value of more than '
            f'{_MAX_ARRAY // 2**20} MiB; save it as JSON lines.'
        )
    return data


def _held_rows(value: Any) -> list[Any] | None:
    """The rows of `{"data": [...]}`; None for an object that is itself a row."""
    for key in _ROW_KEYS if isinstance(value, dict) else ():
        rows = value.get(key)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            return rows
    return None


def _read_csv(path: str, what: str) -> Iterator[SourceRow]:
    """A table whose first line names the fields."""
    delimiter = '\t' if _without_gz(path).suffix.lower() == '.tsv' else ','
    csv.field_size_limit(_LONGEST_FIELD)
    with reading.utf8(path, f'{what} file') as file:
        # Quoted fields have line breaks of their own.
        text = io.TextIOWrapper(file, 'utf-8', newline='')
        table = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            for row in table:
                if None in row:
                    raise errors.InputError(
                        f'{path}: line {table.line_num} has more fields than the '
                        'first line names; put quotes around fields with '
                        f'{"tabs" if delimiter != "," else "commas"}.'
                    )
                number = table.line_num
                yield SourceRow(number, f'{path}: line {number}', row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise errors.InputError(
                f'{path}: line {table.line_num + 1}: no CSV of UTF-8 text ({error}).'
            ) from None


def _read_parquet(source: Source) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source.name) as table:
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
            yield from batch.to_pylist()


def _read_datasets(source: Source) -> Iterator[Any]:
    """A Hub id, a folder of data files, or what `save_to_disk` wrote."""
    import datasets

    name, split, what = source.name, source.split, source.what
    wanted = split or _DEFAULT_SPLIT
    saved = ('dataset_dict.json', 'state.json')
    if not any(os.path.isfile(os.path.join(name, file)) for file in saved):
        yield from datasets.load_dataset(name, source.config or None, split=wanted)
        return
    data = datasets.load_from_disk(name)
    if isinstance(data, datasets.DatasetDict):
        if wanted not in data:
            raise errors.InputError(
                f'{what} folder {name} has no split {wanted!r}; it has '
                f'{", ".join(map(str, data)) or "none"}.'
            )
        data = data[wanted]
    elif split:
        raise errors.InputError(
            f'{what} folder {name} has no splits; leave out :{split}.'
        )
    yield from data


def _read_tfds(source: Source) -> Iterator[Any]:
    import tensorflow_datasets as tfds

    # A data source needs no TensorFlow, unlike tfds.load.
    data = tfds.data_source(source.name, split=source.split or _DEFAULT_SPLIT)
    yield from (data[index] for index in range(len(data)))


def _decoded(value: Any, where: str, field: str = '') -> Any:
    """Text where a source has UTF-8 bytes, as TensorFlow data sets do."""
    if isinstance(value, dict):
        return {name: _decoded(part, where, name) for name, part in value.items()}
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise errors.InputError(
            f'{where}: field {field!r} is not UTF-8 text ({error}).'
        ) from None


def read(source: Source) -> Iterator[SourceRow]:
    """The rows of one source, one at a time.

    A JSON file holds lines, one array, or one object with the rows in it. Without a
    split, 'train' is read. Hub ids and TensorFlow data sets are downloaded if
    they are not on the machine yet; `HF_HOME` and `TFDS_DATA_DIR` say where.

    Raises:
        InputError: in one line, for what cannot be read or is not what it says.
    """
    texts = {'json': _read_json, 'csv': _read_csv}
    if reader := texts.get(source.kind):
        yield from reader(source.name, source.what)
        return
    libraries = {'parquet': _read_parquet, 'tfds': _read_tfds}
    values = libraries.get(source.kind, _read_datasets)(source)
    label = source.name if source.is_local else source.label
    with _library_errors(label, source.what):
        for row in _numbered(label, values):
            yield row._replace(value=_decoded(row.value, row.where))

"""Rewrites made elsewhere, from a JSON lines file."""

from collections.abc import Generator, Iterable, Sequence
import hashlib
import pathlib
from typing import Any, NamedTuple

from ppjax.base import errors, json_lines
from ppjax.personas import inputs
from ppjax.synthesis import rewriting

_FORM = '{"query_id" or "query": text, "rewrite": text}'


class _Row(NamedTuple):
    rewrite: str
    finished: bool
    refused: bool
    query: str | None
    where: str


class FileRewriter:
    """Rows `{"query_id", "rewrite"}` or `{"query", "rewrite"}`, one a query.

    A row is found by its `query_id`; one without is found by its query's text. The
    booleans `finished` and `refused` may say more (a log of replies has them); other
    keys are passed over. Two rows for one query must agree: which one is meant, only
    their author knows.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        rows: Iterable[tuple[str, Any]] | None = None,
    ):
        """Reads the file.

        Args:
            path: of the file.
            rows: (place, row) of all its rows, where they are not to be read there.

        Raises:
            InputError: naming file and line of a bad or contradicting row, or an
                unreadable or empty file.
        """
        self._path = pathlib.Path(path)
        self._by_id: dict[str, _Row] = {}
        self._by_query: dict[str, _Row] = {}
        digest = hashlib.sha256()
        for where, value in rows or json_lines.read(path, 'Rewrite file'):
            key, row = _parse(value, where)
            known = self._by_query if key is None else self._by_id
            name = _normal(row.query or '') if key is None else key
            first = known.setdefault(name, row)
            if first.rewrite != row.rewrite:
                raise errors.InputError(
                    f'{where}: another rewrite for {_named(key, row)}, which '
                    f'{first.where} has already; delete one of the two.'
                )
            digest.update(f'{key!r} {name!r} {row[:3]!r}\n'.encode())
        if not self._by_id and not self._by_query:
            raise errors.InputError(f'{path} holds no rows; wanted {_FORM}.')
        self._identity = f'file {digest.hexdigest()}'

    @property
    def identity(self) -> str:
        """By content: an edited file's rows are read anew."""
        return self._identity

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Generator[rewriting.Reply, None, None]:
        """The file's rows in the order of the requests; missing ones are failures.

        Raises:
            InputError: if a row's `query_id` is a request's and its query is not.
        """
        for request in requests:
            row = self._by_id.get(request.query_id)
            if row is None:
                row = self._by_query.get(_normal(request.query))
            elif row.query is not None and _normal(row.query) != _normal(request.query):
                raise errors.InputError(
                    f'{row.where}: {request.query_id!r} is another query in the '
                    'instructions; the file was made from other data. Make it anew, '
                    'or delete its "query_id" keys to match by query.'
                )
            if row is None:
                yield rewriting.Reply(
                    request.query_id, '', False, failure=f'{self._path} has no such row'
                )
            else:
                yield rewriting.Reply(
                    request.query_id, row.rewrite, row.finished, row.refused
                )


def _parse(value: Any, where: str) -> tuple[str | None, _Row]:
    if not isinstance(value, dict):
        raise errors.InputError(f'{where}: no rewrite; wanted {_FORM}.')
    for name in ('query_id', 'query', 'rewrite'):
        if value.get(name) is not None and not inputs.is_text(value[name]):
            raise errors.InputError(f'{where}: "{name}" is no text; wanted {_FORM}.')
    for name in ('finished', 'refused'):
        if not isinstance(value.get(name, True), bool):
            raise errors.InputError(f'{where}: "{name}" is neither true nor false.')
    key, query, rewrite = (value.get(x) for x in ('query_id', 'query', 'rewrite'))
    if rewrite is None:
        raise errors.InputError(f'{where}: "rewrite" is missing; wanted {_FORM}.')
    if not key and not (query or '').strip():
        raise errors.InputError(
            f'{where}: neither "query_id" nor "query" says what it answers; '
            f'wanted {_FORM}.'
        )
    finished, refused = value.get('finished', True), value.get('refused', False)
    return key or None, _Row(rewrite, finished, refused, query, where)


def _named(key: str | None, row: _Row) -> str:
    return f'query_id {key!r}' if key is not None else f'query {row.query!r:.60}'


def _normal(query: str) -> str:
    """Spaces and line ends do not make another query."""
    return ' '.join(query.split())

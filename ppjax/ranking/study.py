"""The file of a study: what is ranked, by whom, and every ranking, in SQLite.

A ranking is one participant's order of the answers to one item in one dimension. The
key is participant, item, dimension and model, and all models of all dimensions of an
item are written in one transaction: whoever sends an item again, from the same page or
a second one, replaces what was there, and a process that is killed leaves an item whole
or absent. What a write returned from is on disk.

Of a participant the file holds a code and nothing else, not even a time.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import pathlib
import sqlite3
import threading
from typing import Any, NamedTuple

from ppjax.base import errors
from ppjax.ranking import dimensions, questionnaire

NAME = 'ranking.sqlite'
PERSON, JUDGE = 'person', 'judge'
_FORMAT = 'ppjax.ranking.v1'
_BUSY_SECONDS = 30.0
_TABLES = """
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
  item INTEGER PRIMARY KEY, persona TEXT NOT NULL, question TEXT NOT NULL
);
CREATE TABLE answers (
  item INTEGER NOT NULL REFERENCES items, model TEXT NOT NULL, answer TEXT NOT NULL,
  PRIMARY KEY (item, model)
);
CREATE TABLE participants (
  participant TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'judge')),
  name TEXT NOT NULL
);
CREATE TABLE rankings (
  participant TEXT NOT NULL REFERENCES participants, item INTEGER NOT NULL,
  dimension TEXT NOT NULL, model TEXT NOT NULL, rank REAL NOT NULL CHECK (rank >= 1),
  PRIMARY KEY (participant, item, dimension, model),
  FOREIGN KEY (item, model) REFERENCES answers
);
CREATE TABLE replies (
  participant TEXT NOT NULL REFERENCES participants,
  item INTEGER NOT NULL REFERENCES items, dimension TEXT NOT NULL,
  backwards INTEGER NOT NULL CHECK (backwards IN (0, 1)), reply TEXT NOT NULL,
  models TEXT,
  PRIMARY KEY (participant, item, dimension, backwards)
);
"""


class Participant(NamedTuple):
    """Who ranks.

    Attributes:
        code: tells participants apart.
        kind: `PERSON` or `JUDGE`.
        name: of a judge's model; a person's is the code.
    """

    code: str
    kind: str
    name: str


class Ranking(NamedTuple):
    """The rank of one answer, as rankings.csv has it; 1 is the best."""

    participant: str
    kind: str
    item: int
    dimension: str
    model: str
    rank: float


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a judge said.

    Attributes:
        item: number.
        dimension: name.
        backwards: whether it saw the answers in the reversed order.
        text: all that it wrote.
        models: the best first; None if the text is no ranking.
    """

    item: int
    dimension: str
    backwards: bool
    text: str
    models: tuple[str, ...] | None


class Study:
    """An open study; to be closed. Several threads may use it."""

    def __init__(self, path: pathlib.Path):
        """Opens a file, or makes it, which then holds no study yet.

        Raises:
            InputError: if it is another file, or cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        self.questionnaire: questionnaire.Questionnaire | None = None
        with self._told():
            self._database = sqlite3.connect(
                path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._told():
                self._database.execute('PRAGMA journal_mode=WAL')
                # In WAL mode the default lets a power cut take the last commits.
                self._database.execute('PRAGMA synchronous=FULL')
                self._database.execute('PRAGMA foreign_keys=ON')
                self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Says in one line what SQLite says."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise errors.DiskError(f'Cannot use {self.path}: {error}.') from error
        except sqlite3.DatabaseError as error:
            raise errors.InputError(
                f'{self.path} is damaged, or no file of rankings ({error}); move it '
                'away, or give another --output_dir.'
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of what is done inside, or none of it."""
        with self._lock, self._told():
            self._database.execute('BEGIN IMMEDIATE')
            try:
                yield self._database
                self._database.execute('COMMIT')
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._database.in_transaction:
                    self._database.execute('ROLLBACK')
                raise

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock, self._told():
            return self._database.execute(query, values).fetchall()

    def _read(self) -> None:
        """Raises:
        InputError: if it holds something else.
        """
        tables = {name for (name,) in self._rows('SELECT name FROM sqlite_master')}
        if not tables:
            return
        stored = {}
        if 'study' in tables:
            stored = dict(self._rows('SELECT name, value FROM study'))
        if stored.get('format') != _FORMAT:
            raise errors.InputError(
                f'{self.path}: format {stored.get("format")!r}, wanted {_FORMAT!r}; it '
                'was not made by this version. Give another --output_dir.'
            )
        models = tuple(json.loads(stored['models']))
        answers: dict[int, dict[str, str]] = {}
        for item, model, answer in self._rows(
            'SELECT item, model, answer FROM answers'
        ):
            answers.setdefault(item, {})[model] = answer
        items = tuple(
            questionnaire.Item(persona, question, answers[item])
            for item, persona, question in self._rows(
                'SELECT item, persona, question FROM items ORDER BY item'
            )
        )
        self.questionnaire = questionnaire.Questionnaire(
            models, items, int(stored['seed'])
        )

    def begin(self, wanted: questionnaire.Questionnaire) -> None:
        """Fills a new file; one that is filled must hold the very same.

        Raises:
            InputError: naming what differs.
        """
        if self.questionnaire is not None:
            if found := questionnaire.differences(self.questionnaire, wanted):
                raise errors.InputError(
                    f'{self.path} holds another study; these differ: '
                    f'{"; ".join(found)}. Its rankings would be of other answers; use '
                    'another --output_dir.'
                )
            return
        items = list(enumerate(wanted.items, start=1))
        with self._writing() as database:
            # `executescript` would commit at once.
            for statement in filter(str.strip, _TABLES.split(';')):
                database.execute(statement)
            database.executemany(
                'INSERT INTO study VALUES (?, ?)',
                [
                    ('format', _FORMAT),
                    ('seed', str(wanted.seed)),
                    ('models', json.dumps(wanted.models)),
                ],
            )
            database.executemany(
                'INSERT INTO items VALUES (?, ?, ?)',
                [(number, item.persona, item.question) for number, item in items],
            )
            database.executemany(
                'INSERT INTO answers VALUES (?, ?, ?)',
                [
                    (n, model, x)
                    for n, item in items
                    for model, x in item.answers.items()
                ],
            )
        self.questionnaire = wanted

    def add(self, participant: Participant) -> bool:
        """Takes a participant in; false if the code is known already."""
        with self._writing() as database:
            done = database.execute(
                'INSERT OR IGNORE INTO participants VALUES (?, ?, ?)', participant
            )
            return done.rowcount == 1

    def participants(self) -> list[Participant]:
        """In the order in which they came."""
        return [
            Participant(*row)
            for row in self._rows(
                'SELECT participant, kind, name FROM participants ORDER BY rowid'
            )
        ]

    def has(self, person: str) -> bool:
        """Whether there is a person of that code."""
        query = 'SELECT 1 FROM participants WHERE participant = ? AND kind = ?'
        return bool(self._rows(query, person, PERSON))

    def rank(
        self, participant: str, item: int, orders: Mapping[str, Sequence[str]]
    ) -> bool:
        """Writes the order of an item's answers in some dimensions, at once.

        Args:
            participant: code.
            item: number.
            orders: dimension -> all models, the best first.

        Returns:
            Whether rankings were there, which these replace.

        Raises:
            ValueError: if an order is none of the models, or a dimension unknown.
            DiskError: if nothing could be written.
        """
        ranks = {
            dimension: {model: float(rank) for rank, model in enumerate(order, start=1)}
            for dimension, order in orders.items()
        }
        if any(len(own) != len(orders[name]) for name, own in ranks.items()):
            raise ValueError(f'{orders} name a model twice.')
        with self._writing() as database:
            return self._write(database, participant, item, ranks)

    def _write(
        self,
        database: sqlite3.Connection,
        participant: str,
        item: int,
        ranks: Mapping[str, Mapping[str, float]],
    ) -> bool:
        assert self.questionnaire is not None
        models = set(self.questionnaire.models)
        for dimension, own in ranks.items():
            if dimension not in dimensions.NAMES or set(own) != models:
                raise ValueError(f'{dimension}: {own} are no ranks of {models}.')
        (before,) = database.execute(
            'SELECT count(*) FROM rankings WHERE participant = ? AND item = ?',
            (participant, item),
        ).fetchone()
        database.executemany(
            'INSERT OR REPLACE INTO rankings VALUES (?, ?, ?, ?, ?)',
            [
                (participant, item, dimension, model, rank)
                for dimension, own in ranks.items()
                for model, rank in own.items()
            ],
        )
        return bool(before)

    def hear(self, participant: str, reply: Reply) -> None:
        """Writes a judge's reply, and the ranking once both orders have one.

        The rank of an answer is the mean of its ranks in the two orders, which may
        make ties; where one of them is no ranking there is none.
        """
        with self._writing() as database:
            database.execute(
                'INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)',
                (
                    participant,
                    reply.item,
                    reply.dimension,
                    int(reply.backwards),
                    reply.text,
                    None if reply.models is None else json.dumps(reply.models),
                ),
            )
            found = database.execute(
                'SELECT models FROM replies WHERE participant = ? AND item = ? AND '
                'dimension = ? AND models IS NOT NULL',
                (participant, reply.item, reply.dimension),
            ).fetchall()
            if len(found) == 2:
                both = [json.loads(models) for (models,) in found]
                ranks = {
                    model: sum(own.index(model) + 1 for own in both) / 2
                    for model in both[0]
                }
                self._write(database, participant, reply.item, {reply.dimension: ranks})

    def replies(self, participant: str) -> list[Reply]:
        """All of a judge's."""
        return [
            Reply(
                item,
                dimension,
                bool(backwards),
                text,
                None if models is None else tuple(json.loads(models)),
            )
            for item, dimension, backwards, text, models in self._rows(
                'SELECT item, dimension, backwards, reply, models FROM replies WHERE '
                'participant = ? ORDER BY item, dimension, backwards',
                participant,
            )
        ]

    def orders(self, participant: str, item: int) -> dict[str, list[str]]:
        """What a participant said of an item: dimension -> models, the best first."""
        found: dict[str, list[str]] = {}
        for dimension, model in self._rows(
            'SELECT dimension, model FROM rankings WHERE participant = ? AND item = ? '
            'ORDER BY dimension, rank',
            participant,
            item,
        ):
            found.setdefault(dimension, []).append(model)
        return found

    def done(self, participant: str) -> set[int]:
        """The items that a participant has ranked in every dimension."""
        return {
            item
            for (item,) in self._rows(
                'SELECT item FROM rankings WHERE participant = ? GROUP BY item '
                'HAVING count(DISTINCT dimension) = ?',
                participant,
                len(dimensions.NAMES),
            )
        }

    def rankings(self) -> list[Ranking]:
        """All there are, in an order of their own."""
        return [
            Ranking(*row)
            for row in self._rows(
                'SELECT participant, kind, item, dimension, model, rank FROM rankings '
                'JOIN participants USING (participant) '
                'ORDER BY kind DESC, participants.rowid, item, dimension, rank, model'
            )
        ]

"""What the sections of a page are made of: figures, tables, answers.

Figures are read leniently: one that is missing, or no number, is a dash.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

from ppjax.pages import drawing, formats

# Longer tables and lists would make a page that opens on no phone.
MOST_ROWS = 100


@dataclasses.dataclass(frozen=True)
class TableCell:
    """A figure of a table, and its spread in small letters, or ''."""

    text: str
    detail: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures side by side.

    Attributes:
        name: its id in the page.
        columns: what each but the first holds.
        rows: (label, one cell a column).
        title: above it; a folded table opens at a click on it.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[TableCell]]]
    title: str = ''
    folded: bool = False

    def filled(self) -> 'Table':
        """With the rows alone that have a figure, and not too many of them."""
        rows = [row for row in self.rows if not is_empty(row[1])]
        return dataclasses.replace(self, rows=rows[:MOST_ROWS])


@dataclasses.dataclass(frozen=True)
class JudgedAnswer:
    """One model's answer: its score as text, and what else is worth a word."""

    model: str
    score: str
    remarks: Sequence[str]
    text: str


@dataclasses.dataclass(frozen=True)
class JudgedQuestion:
    """A question and what each model made of it."""

    group: str
    question: str
    answers: Sequence[tuple[str, JudgedAnswer]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        intro: what was measured, in a sentence or two.
        plots: drawn once the page is; None is none.
        tables: under them.
        note: how to read these.
        questions: with judged answers, the worst first.
        questions_note: which of them.
        settings: (name, value) pairs.
    """

    title: str
    intro: str
    plots: Sequence[drawing.Drawing | None] = ()
    tables: Sequence[Table] = ()
    note: str = ''
    questions: Sequence[JudgedQuestion] = ()
    questions_note: str = ''
    settings: Sequence[tuple[str, str]] = ()

    def filled(self) -> 'Section | None':
        """What of it has figures; None without a table and a question."""
        tables = [full for table in self.tables if (full := table.filled()).rows]
        if not tables and not self.questions:
            return None
        plots = [plot for plot in self.plots if plot]
        return dataclasses.replace(self, plots=plots, tables=tables)


NOTHING = TableCell('–')


def cell(value: Any, show: formats.Show, beside: Any = None) -> TableCell:
    """A figure, and its interval or what it is a part of; a dash if it is no number."""
    shown, ends = formats.number(value), formats.interval(beside)
    if shown is None:
        return NOTHING
    if ends:
        return TableCell(show(shown), f'{show(ends[0])} to {show(ends[1])}')
    whole = formats.number(beside)
    return TableCell(show(shown), '' if whole is None else f'of {show(whole)}')


def is_empty(cells: Iterable[TableCell]) -> bool:
    """Whether no cell has a figure."""
    return all(cell.text == NOTHING.text for cell in cells)

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
        plots: drawn once the page is.
        tables: under them.
        note: how to read these.
        questions: with judged answers, the worst first.
        settings: (name, value) pairs.
    """

    title: str
    intro: str
    plots: Sequence[drawing.Drawing] = ()
    tables: Sequence[Table] = ()
    note: str = ''
    questions: Sequence[JudgedQuestion] = ()
    settings: Sequence[tuple[str, str]] = ()


NOTHING = TableCell('–')


def cell(value: Any, show: formats.Show, spread: Any = None) -> TableCell:
    """A figure, and its interval if there is one; a dash if it is no number."""
    shown = formats.number(value)
    if shown is None:
        return NOTHING
    ends = formats.interval(spread)
    return TableCell(show(shown), f'{show(ends[0])} to {show(ends[1])}' if ends else '')


def filled(
    rows: Iterable[tuple[str, list[TableCell]]],
) -> list[tuple[str, list[TableCell]]]:
    """Those with a figure."""
    return [row for row in rows if any(cell.text != NOTHING.text for cell in row[1])]

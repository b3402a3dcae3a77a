"""What sections of the report are made of, from results as JSON keeps them.

Results are read leniently: a figure that is missing, or no number, is a dash.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from ppjax.evaluation import candidates
from ppjax.evaluation.page.run_results import mapping
from ppjax.pages import charts
from ppjax.pages.formats import number

# Colours of the page.
PAINTS = {'dense': 'dense', 'masked': 'heldout', 'pruned': 'learned'}
# Longer tables and lists would make a page that opens on no phone.
MOST_ROWS = 100

Show = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Cell:
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
    rows: Sequence[tuple[str, Sequence[Cell]]]
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
        plots: as the functions of `charts` give them.
        tables: under them.
        note: how to read these.
        questions: with judged answers, the worst first.
        settings: (name, value) pairs.
    """

    title: str
    intro: str
    plots: Sequence[dict[str, Any]] = ()
    tables: Sequence[Table] = ()
    note: str = ''
    questions: Sequence[JudgedQuestion] = ()
    settings: Sequence[tuple[str, str]] = ()


NOTHING = Cell('–')


def signed(value: float, digits: int = 4) -> str:
    text = f'{value:+.{digits}f}'.replace('-', '−')
    return text if float(text.replace('−', '-')) else text[1:]


def decimals(digits: int) -> Show:
    return lambda value: f'{value:.{digits}f}'


def percent(value: float) -> str:
    return f'{100 * value:.1f}\N{NO-BREAK SPACE}%'


def plus_minus(error: float) -> str:
    return f'±\N{NO-BREAK SPACE}{error:.4f}'


def points(value: float) -> str:
    return signed(value, 2)


def interval(value: Any) -> tuple[float, float] | None:
    """Two numbers, or None for whatever else a file held."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else (low, high)


def cell(value: Any, show: Show, spread: Any = None) -> Cell:
    """A figure, and its interval if there is one; a dash if it is no number."""
    shown = number(value)
    if shown is None:
        return NOTHING
    ends = interval(spread)
    return Cell(show(shown), f'{show(ends[0])} to {show(ends[1])}' if ends else '')


def models(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The models' figures, the dense one first; others than ours are left out."""
    found = mapping(result.get('models'))
    return {name: found[name] for name in candidates.LABELS if mapping(found.get(name))}


def labels(names: Iterable[str]) -> list[str]:
    return [candidates.LABELS[name] for name in names]


def legend(names: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(PAINTS[name], 'block', candidates.LABELS[name]) for name in names]


def filled(
    rows: Iterable[tuple[str, list[Cell]]],
) -> list[tuple[str, list[Cell]]]:
    """Those with a figure."""
    return [row for row in rows if any(cell.text != NOTHING.text for cell in row[1])]


def bar(
    name: str, value: Any, show: Show, ends: tuple[float, float] | None
) -> charts.Bar | None:
    """A bar in a model's colour; None if there is no figure."""
    length = number(value)
    if length is None:
        return None
    return charts.Bar(PAINTS[name], length, ends, show(length))


def settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of one line, the models' identities, and versions."""
    plain = (str, int, float)
    stored = mapping(result.get('settings'))
    identities = mapping(stored.get('models')).items()
    pairs: list[tuple[str, Any]] = list(stored.items())
    pairs += [(f'models.{name}', value) for name, value in identities]
    pairs += [('judge identity', result.get('judge'))]
    pairs += [('partner identity', result.get('partner'))]
    pairs += list(mapping(result.get('versions')).items())
    return [
        (name[:300], str(value)[:300])
        for name, value in pairs
        if isinstance(value, plain)
    ]

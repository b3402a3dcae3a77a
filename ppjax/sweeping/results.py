"""What the cells of a sweep measured: one figure per cell and persona."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ppjax.base import errors, json_lines
from ppjax.sweeping import cells as cells_lib
from ppjax.sweeping import grid

# And as tables name them.
MODELS = {
    'dense': 'Dense',
    'random': 'Random mask',
    'one_shot': 'One-shot mask',
    'learned': 'Learned mask',
}


@dataclasses.dataclass(frozen=True)
class Result:
    """How well one cell's masks expect one persona's held-out answers.

    Attributes:
        cell: its name.
        values: of the cell, by axis; `persona` is the one that was measured.
        is_global: whether the mask was learned from all personas' rows.
        nll: model -> nats per answer token.
        answer_tokens: how many were measured.
    """

    cell: str
    values: dict[str, Any]
    is_global: bool
    nll: dict[str, float]
    answer_tokens: int

    @property
    def gain(self) -> float:
        """Learned mask against dense model, in nats per answer token."""
        return self.nll['learned'] - self.nll['dense']

    @property
    def persona(self) -> str | None:
        return self.values.get(grid.PERSONA)

    @property
    def seed(self) -> Any:
        return self.values.get(grid.SEED)

    def without(self, *axes: str) -> tuple[tuple[str, Any], ...]:
        """The values on all axes but these, to group results by."""
        return tuple((k, v) for k, v in self.values.items() if k not in axes)


def read_likelihood(cell: cells_lib.Cell) -> dict[str, Any]:
    """A finished cell's results/likelihood.json.

    Raises:
        InputError: if it is gone.
    """
    path = cell.path / 'results' / 'likelihood.json'
    found = json_lines.stored_object(path) or {}
    if not {'models', 'examples'} <= found.keys():
        raise errors.InputError(
            f'{path} holds no likelihood; delete {cell.path}, and the same command '
            'makes it again.'
        )
    return found


def results_of(
    cell: cells_lib.Cell, likelihood: Mapping[str, Any], digests: Mapping[str, str]
) -> list[Result]:
    """One result of a cell, or one a persona of a cell with a global mask.

    Args:
        cell: finished.
        likelihood: its results/likelihood.json.
        digests: see `cells.prompt_digests`.
    """
    if cell.values.get(grid.PERSONA) != grid.GLOBAL:
        nll = {name: likelihood['models'][name]['nll'] for name in MODELS}
        tokens = likelihood['heldout']['answer_tokens']
        return [Result(cell.name, cell.values, False, nll, tokens)]
    by_persona: dict[str, list[Mapping[str, Any]]] = {}
    for example in likelihood['examples']:
        by_persona.setdefault(digests[example['persona']], []).append(example)
    made = []
    for persona, own in sorted(by_persona.items()):
        values = cell.values | {grid.PERSONA: persona}
        tokens = sum(example['answer_tokens'] for example in own)
        nll = {name: sum(x[name] for x in own) / tokens for name in MODELS}
        made.append(Result(cell.name, values, True, nll, tokens))
    return made


def as_json(
    cell: cells_lib.Cell,
    likelihood: Mapping[str, Any],
    own: Sequence[Result],
    seconds: float,
) -> dict[str, Any]:
    """A cell's entry of sweep.json."""
    nll = {name: likelihood['models'][name]['nll'] for name in MODELS}
    entry = {
        'cell': cell.name,
        'axes': cell.values,
        'nll': nll,
        'learned_minus_dense': nll['learned'] - nll['dense'],
        'heldout': likelihood['heldout'],
        'seconds': seconds,
        'settings': likelihood['settings'],
        'versions': likelihood['versions'],
    }
    if own[0].is_global:
        entry['personas'] = {
            x.persona: {
                'nll': x.nll,
                'learned_minus_dense': x.gain,
                'answer_tokens': x.answer_tokens,
            }
            for x in own
        }
    return entry

"""Held-out figures that a run is compared with, kept so that they are measured once."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from ppjax.base import errors, json_lines, processes
from ppjax.base import progress as progress_lib
from ppjax.data import chat
from ppjax.learning import heldout as heldout_lib

# Before the sparsity, in the name of a mask that is the learned one at another.
AT = 'learned_at_'


def at_one_sparsity(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Results without the figures of one mask at other sparsities."""
    models = (results or {}).get('models')
    if results is None or not isinstance(models, dict):
        return results
    own = {name: x for name, x in models.items() if not name.startswith(AT)}
    return results | {'models': own}


def stored(
    path: pathlib.Path, names: Sequence[str], size: int
) -> dict[str, list[float]] | None:
    """-log p of every held-out example, by model; None if they must be measured.

    Args:
        path: results/references.json.
        names: of the models that it must have.
        size: held-out examples.
    """
    return processes.first_decides(lambda: _read(path, names, size))


def _read(
    path: pathlib.Path, names: Sequence[str], size: int
) -> dict[str, list[float]] | None:
    if not path.exists():
        return None
    try:
        found = json_lines.read_object(path, 'References')
        if set(names) <= set(found) and all(_is_row(x, size) for x in found.values()):
            return found
    except errors.InputError:
        pass
    progress_lib.say(f'{path} is damaged; its figures are measured again.')
    return None


def _is_row(value: Any, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(x, float | int) for x in value)
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures that an earlier stage of a run has kept, so that none is measured twice.

    Attributes:
        path: its results, of which `likelihood` is a part.
        names: a model, as it is called here -> as it is called there.
    """

    path: pathlib.Path
    names: Mapping[str, str]

    def of(self, examples: Sequence[chat.Example]) -> dict[str, heldout_lib.Likelihood]:
        """Likelihoods by name, of models that were measured on these examples."""
        rows = (json_lines.stored_object(self.path) or {}).get('examples') or []
        tokens = [example.num_answer_tokens for example in examples]
        ids = [example.query_id for example in examples]
        if [(row.get('query_id'), row.get('answer_tokens')) for row in rows] != list(
            zip(ids, tokens, strict=True)
        ):
            return {}
        return {
            name: heldout_lib.Likelihood(
                np.array([row[there] for row in rows]), np.array(tokens)
            )
            for name, there in self.names.items()
            if all(there in row for row in rows)
        }


def likelihood(
    source: str | None,
    examples: Sequence[chat.Example],
    models: Mapping[str, heldout_lib.Likelihood],
    *,
    told: Sequence[str] = ('query_id',),
) -> dict[str, Any]:
    """Held-out figures of models as results keep them.

    Args:
        source: the file that the examples are from.
        examples: n of them.
        models: name -> likelihood of the n.
        told: attributes of an example that are kept beside its figures.
    """
    return {
        'heldout': {
            'source': source,
            'rows': len(examples),
            'answer_tokens': sum(x.num_answer_tokens for x in examples),
        },
        'models': {name: {'nll': found.mean} for name, found in models.items()},
        'examples': [
            {name: getattr(example, name) for name in told}
            | {'answer_tokens': example.num_answer_tokens}
            | {name: round(float(x.nll[i]), 6) for name, x in models.items()}
            for i, example in enumerate(examples)
        ],
    }

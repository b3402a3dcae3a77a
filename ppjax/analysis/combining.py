"""Masks made of others, and what a mask file says."""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
from typing import Any

import numpy as np

from ppjax.analysis import sources
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.pages import formats

_JOINED: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'and': np.logical_and,
    'or': np.logical_or,
    'xor': np.logical_xor,
    'diff': lambda first, second: first & ~second,
}
# Of more, a message would not say which.
_MOST_NAMED = 8


def combine(operation: str, masks: Sequence[sources.SourceMask]) -> pmask.PersonaMask:
    """Keeps what an operation makes of what masks keep, without gains and ranks.

    It is of a persona only if all are of the same.

    Args:
        operation: one of `config.OPERATIONS`; those of more than two masks go from
            the first to the last.
        masks: of one base model.

    Raises:
        InputError: if they are too few, or for diff too many, are not alike, or leave
            a layer without a channel.
    """
    of_two = operation == 'diff'
    if len(masks) < 2 or (of_two and len(masks) > 2):
        wanted = 'exactly two masks' if of_two else 'two masks at least'
        raise errors.InputError(
            f'--operation={operation} needs {wanted}; --masks names {len(masks)}.'
        )
    sources.check_alike(masks)
    kept = functools.reduce(_JOINED[operation], [mask.mask.chosen for mask in masks])
    first = masks[0].mask
    _refuse_empty(operation, kept, first.granularity)
    identity: dict[str, Any] = {'persona_sha256': '', 'system_prompt': ''}
    if len({mask.mask.persona_sha256 for mask in masks}) == 1:
        identity = {name: getattr(first, name) for name in identity}
    identity |= {
        'base_model': first.base_model,
        'base_fingerprint': first.base_fingerprint,
    }
    widths = kept.sum(axis=1)
    if (widths == widths[0]).all():
        return pmask.PersonaMask(kept, granularity=first.granularity, **identity)
    return pmask.PersonaMask.of_widths(kept, **identity)


def _refuse_empty(operation: str, kept: np.ndarray, granularity: str) -> None:
    if kept.any(axis=1).all():
        return
    if granularity == pmask.BLOCKS:
        raise errors.InputError(f'--operation={operation} leaves no block.')
    empty = (np.flatnonzero(~kept.any(axis=1)) + 1).tolist()
    named = ', '.join(map(str, empty[:_MOST_NAMED]))
    more = f' and {len(empty) - _MOST_NAMED} more' if len(empty) > _MOST_NAMED else ''
    raise errors.InputError(
        f'--operation={operation} leaves no channel in {len(empty)} of {len(kept)} '
        f'layers, counted from 1: {named}{more}. Every layer must keep one.'
    )


def facts(source: sources.SourceMask) -> list[tuple[str, str]]:
    """(name, value) pairs of what a mask file says, for people."""
    mask = source.mask
    rows, units = mask.mask.shape
    sparsity = 1 - mask.total / mask.mask.size
    said = [
        ('File', str(source.path)),
        ('Base model', mask.base_model),
        ('Fingerprint', mask.base_fingerprint),
        ('Persona', _first_line(mask.system_prompt) or 'no prompt in the file'),
        ('Persona sha256', _prompt_digest(mask)),
        ('Seed', 'not known' if source.seed is None else str(source.seed)),
    ]
    if mask.granularity == pmask.BLOCKS:
        said.append(('Keeps', f'{mask.keep} of {units} blocks'))
    elif mask.kept is None:
        said.append(('Keeps', mask.kind.text(rows, units, mask.keep)))
    else:
        widths = mask.kept.sum(axis=1)
        said += [
            (
                'Keeps',
                f'{mask.total:,} of {mask.mask.size:,} channels in {rows} layers',
            ),
            (
                'Widths',
                f'{widths.min()} to {widths.max()}: {", ".join(map(str, widths))}',
            ),
        ]
    said.append(('Sparsity', f'{sparsity:.4g}'))
    said.append(('Gains', _gains_text(mask)))
    ranks = 'no' if mask.ranking is None else mask.ranking.keeps.text(units)
    return [*said, ('Ranks', ranks)]


def _first_line(prompt: str) -> str:
    line = formats.printable(next(iter(prompt.strip().splitlines()), ''))
    return line if len(line) <= 100 else f'{line[:99]}…'


def _prompt_digest(mask: pmask.PersonaMask) -> str:
    own = hashlib.sha256(mask.system_prompt.encode()).hexdigest()
    if not mask.persona_sha256:
        return 'of no persona, or of several'
    if mask.system_prompt and own != mask.persona_sha256:
        return f'{mask.persona_sha256}, which is not of the prompt in the file'
    return mask.persona_sha256


def _gains_text(mask: pmask.PersonaMask) -> str:
    if not mask.has_gains:
        return 'no'
    own = mask.scaled()[mask.chosen]
    return f'{own.min():.3f} to {own.max():.3f}, {own.mean():.3f} on average'


def facts_text(masks: Sequence[sources.SourceMask]) -> str:
    """The facts of several files, one below the other."""
    blocks = []
    for mask in masks:
        said = facts(mask)
        width = max(len(name) for name, _ in said)
        blocks.append('\n'.join(f'{name:{width}}  {value}' for name, value in said))
    return '\n\n'.join(blocks)


def combined_text(
    operation: str, masks: Sequence[sources.SourceMask], made: pmask.PersonaMask
) -> str:
    """What was made, in a line or two."""
    widths = made.chosen.sum(axis=1)
    lines = [
        f'{operation} of {len(masks)} masks keeps {made.total:,} of '
        f'{made.mask.size:,} {made.granularity}'
        + (f', {widths.min()} to {widths.max()} a layer.' if len(widths) > 1 else '.')
    ]
    if any(mask.mask.is_second for mask in masks):
        lines.append(
            'Gains and ranks are left out: they are of the masks as they were.'
        )
    if masks[0].mask.persona_sha256 and not made.persona_sha256:
        lines.append('It is of no persona, as the masks are of several.')
    return '\n'.join(lines)

"""What rolebench_methods.py measured: records of models, and their table.

A record has a role, a sparsity, a method, the minutes that it took, and of each task
what `evaluate` says of the dense model and of its own.
"""

from collections.abc import Sequence
from typing import Any


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table; likelihoods are in nats per answer token."""
    lines = [
        '| role | sparsity | method | dense | one-shot | NLL | - dense, 95 % interval | '
        + 'of the way from one-shot to dense | plain NLL - dense | PIQA | OpenBookQA | '
        + 'minutes |',
        '|' + '---|' * 12,
    ]
    one_shot = {
        (row['role'], row['sparsity']): row['results']['persona_likelihood']['own'][
            'nll'
        ]['mean']
        for row in results
        if row['method'] == 'one_shot'
    }
    for row in results:
        likelihood = row['results']['persona_likelihood']
        dense, own = likelihood['dense']['nll']['mean'], likelihood['own']
        nll, (low, high) = own['nll']['mean'], own['nll_difference']['interval']
        start = one_shot.get((row['role'], row['sparsity']))
        way = '' if start is None else f'{(start - nll) / (start - dense):.0%}'
        cells = [
            row['role'],
            f'{float(row["sparsity"]):.0%}',
            row['method'],
            f'{dense:.3f}',
            '' if start is None else f'{start:.3f}',
            f'{nll:.3f}',
            f'{nll - dense:+.3f}, {low:+.3f} to {high:+.3f}',
            way,
        ]
        plain = row['results'].get('plain_likelihood')
        cells.append(f'{plain["own"]["nll_difference"]["mean"]:+.3f}' if plain else '')
        for task in ('piqa', 'openbookqa'):
            found = row['results'].get(task)
            pair = (found['dense'], found['own']) if found else ()
            cells.append(' -> '.join(f'{x["acc"]["value"]:.1%}' for x in pair))
        cells.append(f'{row["minutes"]:.1f}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def merged(
    before: Sequence[dict[str, Any]], row: dict[str, Any]
) -> list[dict[str, Any]]:
    """All results with one more, which takes the place of its earlier self."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row['role'], row['sparsity'], row['method']

    return [*(other for other in before if key(other) != key(row)), row]

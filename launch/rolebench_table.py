"""What rolebench_methods.py measured: records of models, and their table.

A record has a role, a sparsity, a method, the minutes that it took, and of each task
what `evaluate` says of the dense model and of its own.
"""

from collections.abc import Iterable, Sequence
import statistics
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


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Method by method: every role's NLL less that of dense, and means over the roles."""
    roles = list(dict.fromkeys(row['role'] for row in results))
    cells = {(row['sparsity'], row['method'], row['role']): row for row in results}
    lines = [
        f'| sparsity | method | {" | ".join(roles)} | mean | of the way from one-shot '
        + 'to dense | plain NLL - dense | PIQA | OpenBookQA | minutes |',
        '|' + '---|' * (len(roles) + 8),
    ]
    for sparsity, method in dict.fromkeys(own[:2] for own in cells):
        rows = [cells.get((sparsity, method, role)) for role in roles]
        found = [row for row in rows if row]
        starts = [cells.get((sparsity, 'one_shot', row['role'])) for row in found]
        ways = [_way(row, start) for row, start in zip(found, starts, strict=True)]
        one = [
            f'{float(sparsity):.0%}',
            method,
            *('' if row is None else f'{_to_dense(row):+.3f}' for row in rows),
            f'{_mean(map(_to_dense, found)):+.3f}',
            '' if None in ways else f'{_mean(ways):.0%}',
        ]
        plain = [row['results'].get('plain_likelihood') for row in found]
        one.append(
            ''
            if None in plain
            else f'{_mean(x["own"]["nll_difference"]["mean"] for x in plain):+.2f}'
        )
        for task in ('piqa', 'openbookqa'):
            asked = [row['results'].get(task) for row in found]
            pair = () if None in asked else ('dense', 'own')
            one.append(
                ' -> '.join(
                    f'{_mean(x[name]["acc"]["value"] for x in asked):.1%}'
                    for name in pair
                )
            )
        one.append(f'{_mean(row["minutes"] for row in found):.1f}')
        lines.append(f'| {" | ".join(one)} |')
    return '\n'.join(lines)


def _nll(row: dict[str, Any], model: str) -> float:
    mean: float = row['results']['persona_likelihood'][model]['nll']['mean']
    return mean


def _to_dense(row: dict[str, Any]) -> float:
    return _nll(row, 'own') - _nll(row, 'dense')


def _way(row: dict[str, Any], start: dict[str, Any] | None) -> Any:
    """Of the way from the one-shot mask to the dense model; None without the former."""
    return None if start is None else 1 - _to_dense(row) / _to_dense(start)


def _mean(values: Iterable[Any]) -> float:
    return statistics.fmean(values)


def merged(
    before: Sequence[dict[str, Any]], row: dict[str, Any]
) -> list[dict[str, Any]]:
    """All results with one more, which takes the place of its earlier self."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row['role'], row['sparsity'], row['method']

    return [*(other for other in before if key(other) != key(row)), row]

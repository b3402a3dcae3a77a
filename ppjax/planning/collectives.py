"""What a compiled program sends between devices, read from its HLO text.

XLA's cost analysis counts the body of a loop once; here a loop over layers counts as
often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re

_KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf' = (.*?) ({"|".join(_KINDS)})(-start)?\(')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')
_CALL = re.compile(r'(?:calls|to_apply)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_SHAPE = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_BOUND = re.compile(r's32\[\]\S* constant\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one kind of collective, a step, on one device.

    Attributes:
        count: how many run.
        bytes: of their results.
    """

    count: int
    bytes: int


def _result_bytes(shapes: str, started: bool) -> int:
    sizes = []
    for kind, dims in _SHAPE.findall(shapes):
        bits = 8 if kind == 'pred' else int(re.findall(r'\d+', kind)[0])
        numbers = [int(dim) for dim in dims.split(',') if dim]
        sizes.append(math.prod(numbers) * bits // 8)
    # An asynchronous one has its operands beside its result.
    return max(sizes, default=0) if started else sum(sizes)


def of_program(text: str) -> dict[str, Traffic]:
    """Kind -> traffic, from the text of an optimised HLO module."""
    bodies: dict[str, list[str]] = {}
    entry, current = '', ''
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[2]
            bodies[current] = []
            if found[1]:
                entry = current
        elif current:
            bodies[current].append(line)

    def trips(condition: str) -> int:
        bounds = [int(n) for n in _BOUND.findall('\n'.join(bodies.get(condition, ())))]
        return max(bounds, default=1)

    @functools.cache
    def totals(name: str) -> collections.Counter[tuple[str, str]]:
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for line in bodies.get(name, ()):
            inside: list[tuple[str, int]] = []
            if loop := _WHILE.search(line):
                inside.append((loop[2], trips(loop[1])))
            elif branches := _BRANCHES.search(line):
                inside += [(own.strip(' %'), 1) for own in branches[1].split(',')]
            elif collective := _COLLECTIVE.search(line):
                size = _result_bytes(collective[1], bool(collective[3]))
                found[collective[2], 'count'] += 1
                found[collective[2], 'bytes'] += size
            else:
                inside += [(own, 1) for own in _CALL.findall(line)]
            for own, times in inside:
                for key, value in totals(own).items():
                    found[key] += times * value
        return found

    whole = totals(entry)
    return {
        kind: Traffic(whole[kind, 'count'], whole[kind, 'bytes'])
        for kind in _KINDS
        if whole[kind, 'count']
    }

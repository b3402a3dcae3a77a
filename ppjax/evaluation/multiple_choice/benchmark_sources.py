"""Where a benchmark's rows come from."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from ppjax.base import errors, ranges
from ppjax.data import row_sources
from ppjax.evaluation.multiple_choice import benchmarks

_WHAT = 'Benchmark'


def _hub(name: str, split: str, config: str = '') -> row_sources.Source:
    return row_sources.Source('hub', name, split, config=config, what=_WHAT)


def _tfds(name: str, split: str) -> row_sources.Source:
    return row_sources.Source('tfds', name, split, what=_WHAT)


# What the words `hub` and `tfds` stand for: the data sets and splits that
# lm-evaluation-harness measures on. There is no MMLU among TensorFlow's data sets.
_KNOWN = {
    ('piqa', 'hub'): _hub('baber/piqa', 'validation'),
    ('piqa', 'tfds'): _tfds('piqa', 'validation'),
    ('openbookqa', 'hub'): _hub('allenai/openbookqa', 'test', 'main'),
    ('openbookqa', 'tfds'): _tfds('openbookqa', 'test'),
    ('mmlu', 'hub'): _hub('cais/mmlu', 'test', 'all'),
    ('mmlu_dev', 'hub'): _hub('cais/mmlu', 'dev', 'all'),
}


def parse(name: str, spec: str) -> row_sources.Source:
    """Reads the value of `--piqa`, `--openbookqa`, `--mmlu` or `--mmlu_dev`.

    Args:
        name: of the flag.
        spec: `hub` or `tfds`, or one source as `--instructions` takes it; with
            `:COUNT` only its first rows are taken.

    Raises:
        InputError: if it is neither.
    """
    word, _, count = spec.partition(':')
    known = _KNOWN.get((name, word))
    if known is not None and (not count or (count.isdecimal() and ranges.whole(count))):
        return dataclasses.replace(known, count=ranges.whole(count) if count else None)
    if word in ('hub', 'tfds') and known is None:
        raise errors.InputError(
            f'--{name}={spec}: no such data set is known; give a file, or a Hub id '
            'owner/name:split.'
        )
    sources = row_sources.parse_spec(spec, _WHAT)
    if len(sources) != 1:
        raise errors.InputError(f'--{name} takes one source, got {spec!r}.')
    return sources[0]


def rows(name: str, spec: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of what a flag names; see `parse`."""
    source = parse(name, spec)
    for taken, row in enumerate(row_sources.read(source)):
        if source.count is not None and taken >= source.count:
            return
        yield f'{source.label}:{row.number}', row.value


def questions(
    task: str, spec: str, *, dev: str | None = None, num_shots: int = 0
) -> list[benchmarks.ChoiceQuestion]:
    """The questions of one task.

    Args:
        task: one of `benchmarks.TASKS`.
        spec: see `parse`.
        dev: of MMLU's worked examples.
        num_shots: of MMLU.

    Raises:
        InputError: if a source cannot be read, has no rows, or one is malformed.
    """
    own = rows(task, spec)
    if task == 'piqa':
        found = benchmarks.piqa(own)
    elif task == 'openbookqa':
        found = benchmarks.openbookqa(own)
    else:
        shots = rows('mmlu_dev', dev) if dev else ()
        found = benchmarks.mmlu(own, shots, num_shots=num_shots)
    if not found:
        raise errors.InputError(f'--{task}={spec} has no rows.')
    return found

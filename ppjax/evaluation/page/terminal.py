"""What a run came to, as text for a terminal."""

from collections.abc import Iterator
import itertools
import pathlib
import shutil
import textwrap
from typing import Any

from ppjax.evaluation import tables
from ppjax.evaluation.page import report, run_results
from ppjax.pages import formats


def likelihood_text(run: run_results.ReportedRun) -> str:
    """The held-out table, aligned, without a trailing newline."""
    rows = run_results.likelihood_rows(run)
    if not rows:
        return 'Held-out persona likelihood: not measured.'
    dtype = run.settings.dtype if run.settings else ''
    table = [
        (
            'model',
            'nats/answer token',
            'perplexity',
            'to dense',
            '95% interval',
            'parameters',
            f'{dtype} weights'.strip(),
        )
    ]
    for row in rows:
        interval = row.interval
        difference = None if row.name == 'dense' else row.difference
        table.append(
            (
                row.label,
                f'{row.nll:.4f}',
                report.perplexity_text(row.perplexity),
                '' if difference is None else f'{difference:+.4f}',
                '' if interval is None else f'{interval[0]:+.4f} to {interval[1]:+.4f}',
                '' if row.parameters is None else formats.quantity(row.parameters),
                '' if row.bytes is None else formats.quantity(row.bytes, 'B'),
            )
        )
    return tables.aligned(table)


def sample_texts(run: run_results.ReportedRun) -> Iterator[str]:
    """Every query, and under it the dense and the pruned answer in two columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 140)
    column = max(20, (width - 3) // 2)

    def wrapped(text: Any, width: int) -> list[str]:
        # Control characters of a model's answer are not for the terminal to obey.
        shown = ''.join(c if c.isprintable() or c == '\n' else ' ' for c in str(text))
        return [
            part
            for line in shown.splitlines()
            for part in textwrap.wrap(line, width) or ['']
        ]

    for sample in run.samples:
        lines = wrapped(f'Q: {sample.get("query", "")}', width)
        columns = [
            [name, '-' * len(name), *wrapped(sample.get(key, ''), column)]
            for name, key in (('dense model', 'dense'), ('pruned model', 'pruned'))
        ]
        lines += [
            f'{left:<{column}} | {right}'.rstrip()
            for left, right in itertools.zip_longest(*columns, fillvalue='')
        ]
        yield '\n'.join(lines)


def paths(run: run_results.ReportedRun, page: pathlib.Path) -> str:
    """Where the model and the page are, and what makes the one if it is not there."""
    if run.exported:
        lines = [f'Model:  {run.path / "hf"}']
    elif run.mask:
        command = f'python -m ppjax.export --output_dir={run.path}'
        lines = [f'Mask:   {run.path / "mask.pmask"} (a model of it: {command})']
    else:
        lines = []
    return '\n'.join([*lines, f'Report: {page}'])

"""What a run came to, as text for a terminal."""

from collections.abc import Iterator
import itertools
import pathlib
import shutil
import textwrap
from typing import Any

from ppjax.evaluation import config
from ppjax.evaluation.page import report, report_evaluation, run_results
from ppjax.pages import formats, texts


def likelihood_text(run: run_results.ReportedRun) -> str:
    """The held-out table, aligned, without a trailing newline."""
    table = report.likelihood_table(run)
    if not table.rows:
        return 'Held-out persona likelihood: not measured.'
    return texts.table(table)


def result_text(task: str, result: dict[str, Any]) -> str:
    """What a task of `evaluate` came to: the tables that the page has of it."""
    found = report_evaluation.sections({config.RESULTS[task]: result})
    return '\n\n'.join(map(texts.section, found))


def sample_texts(run: run_results.ReportedRun) -> Iterator[str]:
    """Every query, and under it the dense and the pruned answer in two columns."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 140)
    column = max(20, (width - 3) // 2)

    def wrapped(text: Any, width: int) -> list[str]:
        return [
            part
            for line in str(text).splitlines()
            for part in textwrap.wrap(formats.printable(line), width) or ['']
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

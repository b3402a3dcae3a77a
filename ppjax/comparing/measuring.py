"""A cell's model measured: what `evaluate` says of it, made small enough to keep."""

from collections.abc import Mapping
import hashlib
import pathlib
import re
from typing import Any

from ppjax.base import progress as progress_lib
from ppjax.base import run_directory, versions
from ppjax.comparing import cells, curves, measures, sizes
from ppjax.comparing import config as config_lib
from ppjax.evaluation import pipeline

MEASURED = 'measured'


# Flags of `evaluate` that name what a task measures on.
_DATA = ('plain', 'eval_sets', 'piqa', 'openbookqa', 'mmlu', 'mmlu_dev')


def data_hash(cfg: config_lib.CompareConfig, values: dict[str, Any]) -> str:
    """sha256 over the files that the tasks of a cell read, beside held-out rows.

    What is downloaded is told by its name alone.

    Args:
        cfg: the settings.
        values: of the cell.
    """
    own = cfg.evaluate_of(values, pathlib.Path(cfg.output_dir), None, cfg.tasks_text)
    digest = hashlib.sha256()
    for name in _DATA:
        for part in (getattr(own, name) or '').split(','):
            path = pathlib.Path(re.sub(r':\d+$', '', part.strip())).expanduser()
            files = sorted(path.glob('*.json')) if part and path.is_dir() else [path]
            for file in files if part else ():
                if file.is_file():
                    digest.update(f'{name} {file.name} '.encode())
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def measure(cfg: config_lib.CompareConfig, cell: cells.Cell) -> dict[str, Any]:
    """The figures of a cell whose model is made, as its file keeps them.

    What does not depend on the persona is measured once for all cells of a model.

    Raises:
        InputError: if a task's input is unusable; what was measured stays.
    """
    results: dict[str, dict[str, Any]] = {}
    for folder, tasks in _parts(cfg, cell):
        path = pathlib.Path(cfg.output_dir) / MEASURED / cell.way.name / folder
        own = cfg.evaluate_of(cell.values, path, cell.way.model, ','.join(tasks))
        with run_directory.visiting(own.run, makes=pipeline.MAKES):
            results |= dict(pipeline.Evaluation(own).run())
    stages = cell.way.stages
    return {
        'cell': cell.name,
        'identity': cell.identity,
        'values': cell.shown,
        'measures': measures.items(results),
        'types': measures.types(results),
        'answers': measures.answers(results),
        'curve': curves.read(stages) if cfg.curves else [],
        'size': sizes.measure(cell.way.model or cfg.base_model),
        'versions': versions.versions(),
    }


def _parts(
    cfg: config_lib.CompareConfig, cell: cells.Cell
) -> list[tuple[str, list[str]]]:
    """(folder, tasks): what is measured of the model alone, and of the persona."""
    of_persona = [task for task in cfg.tasks if task in measures.PERSONA_TASKS]
    others = [task for task in cfg.tasks if task not in measures.PERSONA_TASKS]
    parts = [('general', others), (f'persona-{cell.persona}', of_persona)]
    return [part for part in parts if part[1]]


def means(figures: Mapping[str, Any]) -> dict[str, float]:
    """Measure -> the mean over its items."""
    return {
        name: sum(x for _, x, _ in found) / sum(x for _, _, x in found)
        for name, found in figures['measures'].items()
    }


def say(figures: Mapping[str, Any]) -> None:
    """Says what a cell came to."""
    texts = [
        f'{measures.MEASURES[name].label} {measures.MEASURES[name].show(value)}'
        for name, value in means(figures).items()
    ]
    progress_lib.say(f'{figures["cell"]}: {", ".join(texts)}')

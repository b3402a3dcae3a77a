"""What a run directory holds, read leniently: every part may be missing."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import numpy as np

from ppjax.base import errors, json_lines, reading, run_directory
from ppjax.compensation import results as compensation
from ppjax.evaluation import bootstrap, config
from ppjax.learning import references
from ppjax.masking import pmask
from ppjax.pages import formats
from ppjax.recovery import records as recovery
from ppjax.training import config as train_config
from ppjax.training import trained_run

MODELS = {
    'dense': 'Dense model',
    'random': 'Random mask',
    'one_shot': 'One-shot activation mask',
    'learned': 'Learned mask',
    'refitted': 'Refitted model',
    'recovered': 'Recovered model',
}

# Of `evaluate`, each results/NAME.json.
EVALUATIONS = tuple(config.RESULTS.values())


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """What a run directory holds; None or empty where there is nothing.

    Attributes:
        path: the run directory.
        settings: of mask learning.
        status: status.json.
        inputs: name -> sha256 of what was read.
        metrics: the entries of metrics.jsonl.
        refit_metrics: those of reconstruction, layer by layer.
        recovery_metrics: those of recovery.
        mask: the learned mask.
        start_mask: the mask of the starting scores.
        synthesis: results/synthesis.json.
        likelihood: results/likelihood.json, with the refitted and the recovered model
            if there are such.
        efficiency: results/efficiency.json.
        samples: dense and pruned answers.
        export: results/export.json, or what reconstruction says of the export.
        evaluation: of `EVALUATIONS`, those that are there.
        exported: whether there is a pruned checkpoint.
        is_staged: whether `python -m ppjax.run` made it, stage by stage.
        problems: files that are there and could not be read, and why.
    """

    path: pathlib.Path
    settings: train_config.TrainConfig | None
    status: dict[str, Any]
    inputs: dict[str, Any]
    metrics: list[dict[str, Any]]
    refit_metrics: list[dict[str, Any]]
    recovery_metrics: list[dict[str, Any]]
    mask: pmask.PersonaMask | None
    start_mask: pmask.PersonaMask | None
    synthesis: dict[str, Any]
    likelihood: dict[str, Any]
    efficiency: dict[str, Any]
    samples: list[dict[str, Any]]
    export: dict[str, Any]
    evaluation: dict[str, dict[str, Any]]
    exported: bool
    is_staged: bool
    problems: list[str]

    def series(self, stage: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one of `metrics`, non-finite values left out."""
        return series(self.metrics, stage, name)

    @property
    def is_learned(self) -> bool:
        """Whether the mask took steps; False if it is that of the starting scores."""
        return self.settings is None or self.settings.steps != 0

    @property
    def any_mask(self) -> pmask.PersonaMask | None:
        """The learned mask, or the one it starts from."""
        return self.mask or self.start_mask


def series(
    metrics: list[dict[str, Any]], stage: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric of a stage, non-finite values left out."""
    found = [
        (entry['step'], entry[name])
        for entry in metrics
        if entry.get('stage') == stage
        and formats.number(entry.get('step')) is not None
        and formats.number(entry.get(name)) is not None
    ]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or {} for whatever else a file held."""
    return value if isinstance(value, dict) else {}


def read_run(run_dir: str | pathlib.Path) -> ReportedRun:
    """Reads whatever of a run is there.

    Raises:
        InputError: if the folder does not exist.
    """
    path = pathlib.Path(run_dir)
    if not path.is_dir():
        raise errors.InputError(f'Run directory {str(path)!r} does not exist.')
    problems: list[str] = []

    def attempt(name: str, read: Callable[[pathlib.Path], Any], absent: Any) -> Any:
        if not (path / name).exists():
            return absent
        try:
            value = read(path / name)
        except (errors.InputError, OSError, ValueError, RecursionError) as error:
            problems.append(f'{name}: {error}')
            return absent
        if absent is not None and not isinstance(value, type(absent)):
            problems.append(f'{name} holds a {type(value).__name__}.')
            return absent
        return value

    def read_json(file: pathlib.Path) -> Any:
        return json_lines.read_value(file, 'Record')

    def read_samples(file: pathlib.Path) -> Any:
        value = read_json(file)
        listed = value.get('samples', []) if isinstance(value, dict) else value
        if not isinstance(listed, list):
            return listed
        return [sample for sample in listed if isinstance(sample, dict)]

    def read_settings(file: pathlib.Path) -> train_config.TrainConfig:
        return trained_run.TrainedRun.open(path).settings

    measured = {
        name: attempt(f'results/{name}.json', read_json, {}) for name in EVALUATIONS
    }
    recorded = run_directory.settings_file(path, 'train').relative_to(path)
    recovered = recovery.of_run(path) or {}
    inside = path / compensation.STAGE_FOLDER if recovered else path
    refitted = compensation.of_run(inside) or {}

    def metrics_of(there: bool, folder: pathlib.Path) -> list[dict[str, Any]]:
        file = str((folder / 'metrics.jsonl').relative_to(path))
        return attempt(file, _read_metrics, []) if there else []

    return ReportedRun(
        path=path,
        settings=attempt(str(recorded), read_settings, None),
        status=_settled(attempt('status.json', read_json, {})),
        inputs=attempt('inputs.json', read_json, {}),
        metrics=attempt('metrics.jsonl', _read_metrics, []),
        refit_metrics=metrics_of(bool(refitted), inside),
        recovery_metrics=metrics_of(bool(recovered), path / recovery.STAGE_FOLDER),
        mask=attempt('mask.pmask', pmask.load, None),
        start_mask=attempt('results/start_mask.pmask', pmask.load, None),
        synthesis=attempt('results/synthesis.json', read_json, {}),
        likelihood=_with_model(
            _with_model(
                attempt('results/likelihood.json', read_json, {}), refitted, 'refitted'
            ),
            recovered,
            'recovered',
        ),
        efficiency=attempt('results/efficiency.json', read_json, {}),
        samples=attempt('results/samples.json', read_samples, []),
        export=refitted or attempt('results/export.json', read_json, {}),
        evaluation={name: found for name, found in measured.items() if found},
        exported=(path / 'hf' / 'config.json').is_file(),
        is_staged=(path / 'stages').is_dir(),
        problems=problems,
    )


def _with_model(
    likelihood: dict[str, Any], other: dict[str, Any], name: str
) -> dict[str, Any]:
    """Held-out figures, and one model's more from another record, if of one file."""
    own, more = (x.get('examples') for x in (likelihood, other))
    if not (isinstance(own, list) and isinstance(more, list)):
        return likelihood
    pairs = list(zip(map(mapping, own), map(mapping, more), strict=False))
    if len(own) != len(more) or any(
        mine.get(key) != theirs.get(key)
        for mine, theirs in pairs
        for key in ('query_id', 'answer_tokens')
    ):
        return likelihood
    models = mapping(likelihood.get('models'))
    found = mapping(other.get('models')).get(name)
    return likelihood | {
        'models': models | {name: found},
        'examples': [mine | {name: theirs.get(name)} for mine, theirs in pairs],
    }


def _settled(status: dict[str, Any]) -> dict[str, Any]:
    """A run that is writing its report has done all that the report tells of."""
    if status.get('stage') == 'report' and status.get('state') == 'running':
        return status | {'state': 'done', 'stage': None}
    return status


def _read_metrics(file: pathlib.Path) -> list[dict[str, Any]]:
    entries = []
    # Whole: a long run's log is larger than what people bring may be.
    with reading.opened(file, 'Metrics') as opened:
        lines = opened.read().splitlines()
    for line in lines:
        try:
            entry = json_lines.parse(line, str(file))
        except errors.InputError:  # The torn last line of a live run.
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


@dataclasses.dataclass(frozen=True)
class LikelihoodRow:
    """One model's line of the held-out table.

    Attributes:
        name: a key of `MODELS`, or of the learned mask at another sparsity.
        label: the same for people.
        nll: nats per answer token.
        difference: of `nll` to the dense model's; None for that itself.
        interval: 95 % bootstrap interval of the difference; None where there is none,
            or without the examples' figures.
        parameters: every parameter once.
        bytes: of these, at the run's dtype.
    """

    name: str
    label: str
    nll: float
    difference: float | None
    interval: tuple[float, float] | None
    parameters: float | None
    bytes: float | None


def likelihood_rows(run: ReportedRun) -> list[LikelihoodRow]:
    """The held-out table in the order of `MODELS`; empty before it is measured.

    What a nested mask makes at the ends of its range comes last.
    """
    models = mapping(run.likelihood.get('models'))
    labels = MODELS | {
        name: f'Learned mask at sparsity {name.removeprefix(references.AT)}'
        for name in models
        if name.startswith(references.AT)
    }
    nll = {
        name: formats.number(mapping(models.get(name)).get('nll')) for name in labels
    }
    # What is exported may be the mask at another sparsity.
    keep = run.mask and run.mask.keep
    exported = run.export if run.export.get('keep', keep) == keep else {}
    if not run.is_learned:
        labels['learned'] = 'Mask of the starting scores'
        if nll['learned'] == nll['one_shot'] and nll['refitted'] is not None:
            # Twice the same, under two names.
            del nll['learned']
    rows = []
    for name, value in nll.items():
        if value is None:
            continue
        dense = nll['dense']
        side = 'dense' if name == 'dense' else 'pruned' if name in MODELS else ''
        figures = mapping(run.efficiency.get(side)) or {
            key: mapping(exported.get(key)).get(side) for key in ('parameters', 'bytes')
        }
        rows.append(
            LikelihoodRow(
                name=name,
                label=labels[name],
                nll=value,
                difference=None if dense is None or side == 'dense' else value - dense,
                interval=_interval(run.likelihood, name),
                parameters=formats.number(figures.get('parameters')),
                bytes=formats.number(figures.get('bytes')),
            )
        )
    return rows


def _interval(likelihood: dict[str, Any], name: str) -> tuple[float, float] | None:
    if name == 'dense':
        return None
    listed = likelihood.get('examples')
    triples = [
        tuple(
            formats.number(example.get(key)) for key in ('dense', name, 'answer_tokens')
        )
        for example in (listed if isinstance(listed, list) else [])
        if isinstance(example, dict)
    ]
    whole = [triple for triple in triples if None not in triple and triple[2]]
    if not whole:
        return None
    dense, other, tokens = np.array(whole, float).T
    return bootstrap.ratio_interval(other - dense, tokens)

"""What makes a model of the grid, each in a run directory that others may share."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

from ppjax import demo
from ppjax.base import errors, flags, json_lines
from ppjax.baselines import run as prune_run
from ppjax.comparing import config as config_lib
from ppjax.comparing import methods
from ppjax.compensation import loop as compensation
from ppjax.exporting import export
from ppjax.learning import config as learning_config
from ppjax.learning import data
from ppjax.recovery import loop as recovery
from ppjax.recovery.neeko import blocks as neeko_blocks
from ppjax.recovery.neeko import export as neeko_export
from ppjax.sweeping import grid
from ppjax.training import loop as training

# Where stages go, and the general rows that some of them read.
MODELS = 'models'
GENERAL_ROWS = 'data/general.jsonl'
_ELSEWHERE = frozenset({'base_model', 'calibration', 'heldout', 'mask', 'model'})
# Settings that came when there were figures already, at what changes nothing: those
# figures hold. A setting that comes later belongs here.
_LATER = {'neeko': False}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step on the way to a model.

    Attributes:
        name: of its folder.
        verb: that does it.
        path: its run directory.
        makes: the model's folder, or a mask file; there only when it is whole. A run
            may have more to write after it.
        run: does it, or goes on; False if it was told to stop before its end.
        settings: that decide what comes out, as text, wherever files lie.
        batch_size: examples of a step; 0 of what takes none.
    """

    name: str
    verb: str
    path: pathlib.Path
    makes: pathlib.Path
    run: Callable[[], bool]
    settings: str
    batch_size: int

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to make, if it is still of the same rows."""
        if not self.makes.exists():
            return False
        # An export has no record of its own in the run that it is of.
        status = json_lines.stored_object(self.path / 'status.json') or {}
        return self.verb == 'export' or status.get('state') == 'done'


@dataclasses.dataclass(frozen=True)
class Way:
    """How the model of a cell comes about.

    Attributes:
        name: of its last stage; that of the dense model where there is none.
        stages: in their order.
        model: the folder of the model; None is the dense one.
        of_persona: the persona whose rows it has seen; '' if none.
    """

    name: str
    stages: tuple[Stage, ...]
    model: pathlib.Path | None
    of_persona: str


def reads_rows(cfg: config_lib.CompareConfig, values: dict[str, Any]) -> bool:
    """Whether a cell's model learns from the rows of --calibration."""
    return _prunes_by_rows(cfg, values) or (
        methods.Recovery.parse(values[config_lib.RECOVERY]).texts == config_lib.PERSONA
    )


def _prunes_by_rows(cfg: config_lib.CompareConfig, values: dict[str, Any]) -> bool:
    method = methods.METHODS[values[config_lib.METHOD]]
    if method.rival:
        return cfg.rival_texts == config_lib.PERSONA
    return method.mask or method.refit


def used_values(
    cfg: config_lib.CompareConfig, values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values on which a cell's model rests, before and after recovery.

    Args:
        cfg: the settings.
        values: of the cell, on all axes and those that are always there.
    """
    method = methods.METHODS[values[config_lib.METHOD]]
    recovery = methods.Recovery.parse(values[config_lib.RECOVERY])
    is_dense = not (method.mask or method.refit or method.rival)
    always = {config_lib.METHOD}
    if not is_dense:
        always |= {config_lib.SPARSITY, config_lib.SEED}
    of_rows = set(values) - config_lib.FIXED - config_lib.LEARNING
    if not cfg.rows_are_of_personas:
        of_rows -= {config_lib.PERSONA}
    own = always | (of_rows if _prunes_by_rows(cfg, values) else set())
    if method.mask and method.steps is None:
        own |= config_lib.LEARNING
    after = set(own)
    if recovery.texts:
        after |= {config_lib.RECOVERY, config_lib.SEED}
    if recovery.texts == config_lib.PERSONA:
        after |= of_rows
    return (
        {k: x for k, x in values.items() if k in own},
        {k: x for k, x in values.items() if k in after},
    )


def way(cfg: config_lib.CompareConfig, values: dict[str, Any]) -> Way:
    """The stages of a cell.

    Raises:
        InputError: if the settings of one contradict each other.
    """
    before, after = used_values(cfg, values)
    folder = pathlib.Path(cfg.output_dir) / MODELS
    # Without values that only say that nothing is done.
    name = grid.name_of(before, ())
    found = _made(cfg, values, folder / name)
    model = found[-1].makes if found else None
    recovers = methods.Recovery.parse(values[config_lib.RECOVERY])
    if recovers.texts:
        name = grid.name_of(after, ())
        if recovers.how == methods.NEEKO:
            # One for all personas, unless each has a model of its own already.
            shared = {k: x for k, x in after.items() if k != config_lib.PERSONA}
            shared |= before
            who = hashlib.sha256('\n'.join(cfg.personas).encode()).hexdigest()[:8]
            blocks = folder / f'{grid.name_of(shared, ())}--blocks-{who}'
            found += _of_blocks(cfg, values, folder / name, blocks, model)
        else:
            found.append(_recovered(cfg, values, folder / name, model))
        model = found[-1].makes
    return Way(name, tuple(found), model, after.get(config_lib.PERSONA, ''))


def _made(
    cfg: config_lib.CompareConfig, values: dict[str, Any], path: pathlib.Path
) -> list[Stage]:
    method = methods.METHODS[values[config_lib.METHOD]]
    if method.rival:
        texts = cfg.filled(cfg.calibration, values)
        if cfg.rival_texts == config_lib.GENERAL:
            texts = str(_general(cfg))
        settings = cfg.prune_of(values, path, texts)
        return [
            _stage('prune', path, settings, lambda: bool(prune_run.prune(settings)))
        ]
    found: list[Stage] = []
    mask = None
    if method.mask:
        folder = path.with_name(f'{path.name}--mask') if method.refit else path
        mask = folder / 'mask.pmask'
        steps = {} if method.steps is None else {'steps': method.steps}
        train = cfg.train_of(values, folder, **steps)
        rows, measured = _rows(train.calibration), _heldout(train.heldout)
        found.append(
            _stage(
                'train',
                folder,
                train,
                lambda: bool(training.learn_mask(train, rows(), measured())),
                mask,
            )
        )
        if not method.refit:
            exported = cfg.export_of(folder)
            found.append(
                _stage('export', folder, exported, lambda: not export.export(exported))
            )
    if method.refit:
        refit = cfg.compensate_of(values, path, mask)
        own = _rows(str(refit.calibration))
        found.append(
            _stage(
                'compensate',
                path,
                refit,
                lambda: bool(compensation.compensate(refit.resolved(), own(), [])),
            )
        )
    return found


def _recovered(
    cfg: config_lib.CompareConfig,
    values: dict[str, Any],
    path: pathlib.Path,
    model: pathlib.Path | None,
) -> Stage:
    recovers = methods.Recovery.parse(values[config_lib.RECOVERY])
    texts = cfg.filled(cfg.calibration, values)
    if recovers.texts == config_lib.GENERAL:
        texts = str(_general(cfg))
    settings = cfg.recover_of(values, path, model or cfg.base_model, texts)
    rows, measured = _rows(texts), _heldout(settings.heldout)
    return _stage(
        'recover',
        path,
        settings,
        lambda: bool(recovery.recover(settings, rows(), measured())),
    )


def _of_blocks(
    cfg: config_lib.CompareConfig,
    values: dict[str, Any],
    path: pathlib.Path,
    blocks: pathlib.Path,
    model: pathlib.Path | None,
) -> list[Stage]:
    """Neeko's blocks of all personas, and the model of the cell's own."""
    sources = cfg.calibrations(values)
    start = model or cfg.base_model
    settings = cfg.recover_of(values, blocks, start, ','.join(sources))
    file = blocks / neeko_blocks.FILE
    own = _rows(cfg.filled(cfg.calibration, values))

    def rows() -> list[Any]:
        # What one persona is measured on may be among the rows of another.
        asked = {
            data.question(row)
            for persona in cfg.personas
            for row in demo.read_rows(
                cfg.filled(cfg.heldout, values | {config_lib.PERSONA: persona}),
                split='test',
            )
        }
        every = [row for source in sources for row in _rows(source)()]
        return [row for row in every if data.question(row) not in asked]

    def export() -> bool:
        prompt = own()[0].system_prompt
        return bool(
            neeko_export.export(cfg.neeko_export_of(path / 'hf', file, model, prompt))
        )

    learn = _stage(
        'recover',
        blocks,
        settings,
        lambda: bool(recovery.recover(settings, rows(), [])),
        file,
    )
    return [learn, Stage(path.name, 'export', path, path / 'hf', export, '', 0)]


def _stage(
    verb: str,
    path: pathlib.Path,
    settings: Any,
    run: Callable[[], bool],
    makes: pathlib.Path | None = None,
) -> Stage:
    # Paths are told by what is there.
    names = {field.name for field in dataclasses.fields(settings)}
    omit = (_ELSEWHERE | learning_config.RESUMABLE) & names
    omit |= {k for k, x in _LATER.items() if k in names and getattr(settings, k) == x}
    # What a mask is exported to is the mask's affair alone.
    text = '' if verb == 'export' else flags.to_flagfile(settings, omit=tuple(omit))
    taken = settings.batch_size if verb in ('train', 'recover') else 0
    return Stage(path.name, verb, path, makes or path / 'hf', run, text, taken)


def _rows(source: str) -> Callable[[], list[Any]]:
    return lambda: demo.read_rows(source, split='train')


def _heldout(source: str | None) -> Callable[[], list[Any]]:
    return lambda: demo.read_rows(source, split='test') if source else []


def _general(cfg: config_lib.CompareConfig) -> pathlib.Path:
    """The file of general rows.

    Raises:
        InputError: if none are named.
    """
    if not cfg.instructions:
        raise errors.InputError(
            '--grid asks for general rows, of rivals or of recovery; name them with '
            '--instructions, or take persona rows (--rival_texts, recovery=persona).'
        )
    return pathlib.Path(cfg.output_dir) / GENERAL_ROWS


def all_stages(ways: Sequence[Way]) -> list[Stage]:
    """Each once, in the order in which they come up."""
    found: dict[tuple[str, str], Stage] = {}
    for own in ways:
        for stage in own.stages:
            found.setdefault((stage.verb, stage.name), stage)
    return list(found.values())

"""The settings of `python -m ppjax.compare`, and those of each of its stages."""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
import pathlib
import re
import shlex
from typing import Any, TypeVar

from ppjax.base import errors, flags, settings
from ppjax.baselines import config as prune_config
from ppjax.comparing import methods
from ppjax.compensation import config as compensate_config
from ppjax.evaluation import config as evaluate_config
from ppjax.exporting import config as export_config
from ppjax.recovery import config as recover_config
from ppjax.sweeping import grid as grid_lib
from ppjax.training import config as train_config

METHOD, RECOVERY, SPARSITY = 'method', 'recovery', 'sparsity'
PERSONA, SEED = grid_lib.PERSONA, grid_lib.SEED
# What a method that is not told learns from: general instructions or a persona's rows.
GENERAL = 'general'
NO_RECOVERY = 'none'
_LORA_RANK = 16
TEXTS = (GENERAL, PERSONA)

_NAME = re.compile(r'\{(\w+)\}')
Settings = TypeVar('Settings')


@dataclasses.dataclass(frozen=True)
class CompareConfig(settings.CommonSettings):
    """Which methods, on which personas, made and measured how."""

    grid: str = flags.setting(
        None,
        'What varies: axis=value,value and semicolons between axes. Axes are method '
        f'({", ".join(methods.METHODS)}), persona, sparsity, recovery (none, or what it '
        'learns from, general or persona, and how, as in persona:lora), seed, settings '
        'of mask learning, and names that stand in braces in --calibration. Several '
        'grids, with | between them, are compared together.',
    )
    calibration: str = flags.setting(
        None,
        'JSONL of chats to learn from, or demo:NAME; {persona} stands for the '
        "cell's persona, and other names in braces for axes of --grid.",
        path=True,
    )
    heldout: str = flags.setting(
        None,
        'Disjoint JSONL to measure on, or demo:NAME; {persona} likewise.',
        path=True,
    )
    instructions: str | None = flags.setting(
        None,
        'General instructions and their answers, as for python -m ppjax.run: what '
        'rivals are pruned by, and what general recovery learns from. Questions that '
        'models are measured on are left out.',
        path=True,
    )
    general_rows: int = flags.setting(
        20000, 'Of --instructions, so many at most, drawn with --seed.', least=1
    )
    rival_texts: str = flags.setting(
        GENERAL, 'What rivals are pruned by: these or the persona rows.', choices=TEXTS
    )
    train: str = flags.setting(
        '',
        'More flags of python -m ppjax.train for masks, with spaces between them, as '
        'in --train=--steps=60 --batch_size=8.',
        may_be_empty=True,
    )
    compensate: str = flags.setting(
        '', 'The same of python -m ppjax.compensate.', may_be_empty=True
    )
    recover: str = flags.setting(
        '', 'The same of python -m ppjax.recover.', may_be_empty=True
    )
    prune: str = flags.setting(
        '',
        'The same of python -m ppjax.prune: of every rival, or of one after its name, '
        'semicolons between them, as in --prune=--batch_size=4; '
        'adapt_pruner: --sequences=64.',
        may_be_empty=True,
    )
    evaluate: str = flags.setting(
        '--tasks=likelihood',
        'The same of python -m ppjax.evaluate: what is measured, and on what data; '
        '{persona} stands for the persona.',
    )
    known_cells: str | None = flags.setting(
        None,
        'A folder of figures of cells, such as cells/ of an earlier comparison: those '
        'of the same settings and data are not made again.',
        path=True,
    )
    curves: bool = flags.setting(
        False,
        'Measure the held-out answers while a model learns as well, for curves over '
        'the examples that it has seen.',
    )
    keep_models: bool = flags.setting(
        True, 'Keep models that no unfinished cell needs any more.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.require_given(self, 'grid', 'calibration', 'heldout')
        for grid in self.grids:
            if METHOD not in {axis.name for axis in grid}:
                raise errors.InputError('--grid has no axis method.')
        named = {axis.name for axis in self.axes}
        for flag in ('calibration', 'heldout', 'evaluate'):
            lacking = self.unfilled(
                self.filled(getattr(self, flag), dict.fromkeys(named, ''))
            )
            if lacking is not None:
                raise errors.InputError(
                    f'--{flag} holds {{{lacking}}}, and --grid has no axis {lacking}.'
                )
        if PERSONA in named and '{persona}' not in self.heldout:
            raise errors.InputError(
                '--heldout must hold {persona}, since persona is an axis of --grid.'
            )
        # Rows that another axis names are learned from for all personas.
        if PERSONA in named and not _NAME.findall(self.calibration):
            raise errors.InputError(
                '--calibration must hold {persona} or the name of another axis, since '
                'persona is an axis of --grid.'
            )
        if '{persona}' not in self.calibration and any(
            methods.Recovery.parse(values[RECOVERY]).how == methods.NEEKO
            for values in self.combinations()
        ):
            raise errors.InputError(
                '--calibration must hold {persona}: persona:neeko learns a block from '
                "each persona's rows."
            )

    @staticmethod
    def unfilled(text: str) -> str | None:
        """The first name in braces that is still there, or None."""
        found = _NAME.search(text)
        return found[1] if found else None

    @functools.cached_property
    def grids(self) -> tuple[tuple[grid_lib.Axis, ...], ...]:
        """The axes of each grid, in its order."""
        named = set(_NAME.findall(self.calibration)) - {PERSONA}
        read = functools.partial(self._read, named)
        return tuple(
            grid_lib.parse(part, FIXED | LEARNING | named, read)
            for part in self.grid.split('|')
        )

    @property
    def rows_are_of_personas(self) -> bool:
        """Whether what is made of rows is another model for each persona.

        One made of the same rows is the same for all, but its curves are not.
        """
        return '{persona}' in self.calibration or self.curves

    @functools.cached_property
    def axes(self) -> tuple[grid_lib.Axis, ...]:
        """The axes of all grids together, in the order in which they come up."""
        values: dict[str, dict[Any, None]] = {}
        for axis in itertools.chain.from_iterable(self.grids):
            values.setdefault(axis.name, {}).update(dict.fromkeys(axis.values))
        return tuple(grid_lib.Axis(name, tuple(own)) for name, own in values.items())

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Values of every cell: on the axes, and those that are always there."""
        usual = {SPARSITY: None, RECOVERY: NO_RECOVERY, SEED: self.seed}
        each = map(grid_lib.combinations, self.grids)
        for given in itertools.chain.from_iterable(each):
            found = usual | given
            if found[SPARSITY] is None:
                found[SPARSITY] = self.default_sparsity
            yield found

    @functools.cached_property
    def default_sparsity(self) -> float:
        """Of cells where no axis says it: that of mask learning."""
        return self.train_of({SPARSITY: None}, pathlib.Path(self.output_dir)).sparsity

    @property
    def personas(self) -> tuple[str, ...]:
        """The personas of the grid; an empty name without that axis."""
        return next((x.values for x in self.axes if x.name == PERSONA), ('',))

    def filled(self, template: str, values: dict[str, Any]) -> str:
        """A template with a cell's values in place of names in braces."""
        return _NAME.sub(
            lambda match: grid_lib.text_of(values.get(match[1], match[0])), template
        )

    def _read(self, named: set[str], name: str, text: str) -> Any:
        if name in named:
            return text
        if name == METHOD:
            if text not in methods.METHODS:
                raise errors.InputError(
                    f'--grid: unknown method {text!r}. There are '
                    f'{", ".join(methods.METHODS)}.'
                )
            return text
        if name == RECOVERY:
            methods.Recovery.parse(text)
            return text
        try:
            cfg = flags.parse(
                train_config.TrainConfig,
                [
                    '--base_model=unknown',
                    '--calibration=unknown',
                    '--output_dir=unknown',
                    f'--{name}={text}',
                ],
            )
        except errors.InputError as error:
            raise errors.InputError(f'--grid: {error}') from None
        return getattr(cfg, name)

    def _common(self, values: dict[str, Any]) -> list[str]:
        """Flags that all verbs have."""
        found = {
            'dtype': self.dtype,
            'max_length': self.max_length,
            'date': self.date,
            'mesh': self.mesh,
            'seed': values.get(SEED, self.seed),
        }
        return [
            f'--{name}={value}' for name, value in found.items() if value is not None
        ]

    def parsed(
        self,
        settings_class: type[Settings],
        values: dict[str, Any],
        more: str,
        flag: str,
        **own: Any,
    ) -> Settings:
        """The settings of one stage of a cell.

        Args:
            settings_class: of its verb.
            values: of the cell.
            more: flags that the user gave for it.
            flag: that holds these.
            **own: settings that the cell decides.

        Raises:
            InputError: naming the flag, if they contradict one another.
        """
        given = [
            f'--{name}={str(x).lower() if isinstance(x, bool) else x}'
            for name, x in own.items()
            if x is not None
        ]
        try:
            # What the cell decides comes last, and so holds.
            words = shlex.split(self.filled(more, values))
            return flags.parse(settings_class, [*self._common(values), *words, *given])
        except (errors.InputError, ValueError) as error:
            raise errors.InputError(f'--{flag}: {error}') from None

    def while_learning(self, values: dict[str, Any]) -> str | None:
        """The held-out rows that `curves` are measured on; None without curves."""
        return self.filled(self.heldout, values) if self.curves else None

    def train_of(
        self, values: dict[str, Any], output: pathlib.Path, **own: Any
    ) -> train_config.TrainConfig:
        """Of a mask; the settings of mask learning among the axes hold."""
        axes = {k: x for k, x in values.items() if k in LEARNING or k == SPARSITY}
        return self.parsed(
            train_config.TrainConfig,
            values,
            self.train,
            'train',
            base_model=self.base_model,
            calibration=self.filled(self.calibration, values),
            heldout=self.while_learning(values),
            output_dir=output,
            **(axes | own),
        )

    def compensate_of(
        self, values: dict[str, Any], output: pathlib.Path, mask: pathlib.Path | None
    ) -> compensate_config.CompensateConfig:
        """Of a refit, to a mask or to the channels with the largest activations."""
        own: dict[str, Any] = {'mask': mask}
        if mask is None:
            align = self.train_of(values, output).align
            own = {'sparsity': values[SPARSITY], 'align': align}
        return self.parsed(
            compensate_config.CompensateConfig,
            values,
            self.compensate,
            'compensate',
            base_model=self.base_model,
            calibration=self.filled(self.calibration, values),
            output_dir=output,
            verify=False,
            **own,
        )

    def export_of(self, run: pathlib.Path) -> export_config.ExportConfig:
        """Of a run's mask as a model, which goes to the run's hf/."""
        return export_config.ExportConfig(output_dir=str(run))

    def prune_of(
        self, values: dict[str, Any], output: pathlib.Path, texts: str
    ) -> prune_config.PruneConfig:
        """Of a rival that matches the persona mask of the cell's sparsity."""
        method = values[METHOD]
        return self.parsed(
            prune_config.PruneConfig,
            values,
            ' '.join(self._prune_parts.get(name, '') for name in ('', method)),
            'prune',
            method=method,
            match=values[SPARSITY],
            align=self.train_of(values, output).align,
            base_model=self.base_model,
            calibration=texts,
            output_dir=output,
            verify=False,
        )

    @functools.cached_property
    def _prune_parts(self) -> dict[str, str]:
        """Flags of each rival by name, and under '' those of all."""
        found: dict[str, str] = {}
        for part in self.prune.split(';'):
            name, colon, rest = part.strip().partition(':')
            if not colon or name.startswith('-'):
                name, rest = '', part.strip()
            if name and name not in prune_config.METHODS:
                raise errors.InputError(
                    f'--prune: {name!r} is no rival; there are '
                    f'{", ".join(prune_config.METHODS)}.'
                )
            found[name] = f'{found.get(name, "")} {rest}'.strip()
        return found

    def recover_of(
        self,
        values: dict[str, Any],
        output: pathlib.Path,
        model: pathlib.Path | str,
        texts: str,
    ) -> recover_config.RecoverConfig:
        """Of recovery, from a model that is pruned or from the dense one."""
        recovery = methods.Recovery.parse(values[RECOVERY])
        start = {'model': model}
        if values[METHOD] == methods.DENSE:
            start = {'base_model': model}
        how: dict[str, Any] = {}
        if recovery.how in ('gains', methods.NEEKO):
            how = {recovery.how: True}
        words = shlex.split(self.recover)
        own = [word for word in words if not word.startswith('--lora_')]
        if recovery.how in ('lora', methods.NEEKO):
            own = [f'--lora_rank={_LORA_RANK}', *words]
        found = self.parsed(
            recover_config.RecoverConfig,
            values,
            shlex.join(own),
            'recover',
            calibration=texts,
            # Of one persona, where a run of neeko is of all.
            heldout=None
            if recovery.how == methods.NEEKO
            else self.while_learning(values),
            output_dir=output,
            **(start | how),
        ).resolved()
        if recovery.how == methods.NEEKO and found.steps is not None:
            # As many a persona as of the other ways.
            steps = found.steps * len(self.personas)
            found = dataclasses.replace(found, steps=steps)
        return found

    def calibrations(self, values: dict[str, Any]) -> list[str]:
        """The sources of rows that a cell may learn from: its own, or all personas'."""
        how = methods.Recovery.parse(values[RECOVERY]).how
        personas = self.personas if how == methods.NEEKO else [values.get(PERSONA, '')]
        return list(
            dict.fromkeys(
                self.filled(self.calibration, values | {PERSONA: persona})
                for persona in personas
            )
        )

    def neeko_export_of(
        self,
        output: pathlib.Path,
        blocks: pathlib.Path,
        model: pathlib.Path | None,
        prompt: str,
    ) -> export_config.ExportConfig:
        """Of the model of one persona out of the blocks of all."""
        return export_config.ExportConfig(
            output_dir=str(output),
            neeko=str(blocks),
            base_model=self.base_model if model is None else None,
            model=None if model is None else str(model),
            persona=prompt,
            # With more personas in the grid there are other blocks.
            overwrite=True,
        )

    def evaluate_of(
        self,
        values: dict[str, Any],
        output: pathlib.Path,
        model: pathlib.Path | None,
        tasks: str,
    ) -> evaluate_config.EvaluateConfig:
        """Of a model, or of the dense one."""
        which = {'base_model': self.base_model} if model is None else {'model': model}
        return self.parsed(
            evaluate_config.EvaluateConfig,
            values,
            self.evaluate,
            'evaluate',
            output_dir=output,
            heldout=self.filled(self.heldout, values),
            tasks=tasks,
            **which,
        )

    @property
    def tasks_text(self) -> str:
        """The tasks as a flag has them."""
        return ','.join(self.tasks)

    @functools.cached_property
    def tasks(self) -> list[str]:
        """The tasks of `evaluate`.

        Raises:
            InputError: if its flags are wrong.
        """
        first = {PERSONA: self.personas[0]}
        words = shlex.split(self.filled(self.evaluate, first))
        try:
            own = ['--base_model=unknown', '--output_dir=unknown']
            return flags.parse(evaluate_config.EvaluateConfig, [*words, *own]).task_list
        except errors.InputError as error:
            raise errors.InputError(f'--evaluate: {error}') from None


FIXED = frozenset({METHOD, SPARSITY, RECOVERY, SEED})
# Settings that say how a mask is learned, and nothing of its data.
LEARNING = (
    frozenset(field.name for field in dataclasses.fields(train_config.LearningSettings))
    - frozenset(field.name for field in dataclasses.fields(settings.CommonSettings))
    - train_config.RESUMABLE
    - {SPARSITY}
) | {'calibration_rows'}

# What is told by its content.
SOURCES = ('base_model', 'calibration', 'heldout', 'instructions')
# More values on an axis extend a comparison: cells are named by their values.
RESUMABLE = frozenset(
    {'output_dir', 'overwrite', 'mesh', 'grid', 'known_cells', 'keep_models'}
)

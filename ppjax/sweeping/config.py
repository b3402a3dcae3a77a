"""The settings of a sweep, and those of each of its cells."""

import dataclasses
import functools
import pathlib
from typing import Any

from ppjax.base import errors, flags, settings
from ppjax.sweeping import grid as grid_lib
from ppjax.training import config as train_config

CELLS = 'cells'


@dataclasses.dataclass(frozen=True)
class SweepConfig(train_config.LearningSettings):
    """Flags of `python -m ppjax.sweep`."""

    grid: str = flags.setting(
        None,
        'What varies: axis=value,value and semicolons between axes. An axis is '
        'persona or a setting of mask learning, as in '
        '"persona=jack,walt;sparsity=0.25,0.5;seed=0,1". The persona global is one '
        'mask learned from the rows of all others in the grid.',
    )
    calibration: str = flags.setting(
        None,
        'JSONL of chats to learn from, or demo:NAME; {persona} stands for the '
        "cell's persona.",
        path=True,
    )
    heldout: str = flags.setting(
        None,
        'Disjoint JSONL to measure on, or demo:NAME; {persona} likewise.',
        path=True,
    )
    calibration_rows: int | None = flags.setting(
        None,
        'Learn from so many rows only, drawn with --seed; fewer are a part of more.',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.require_given(self, 'grid', 'calibration', 'heldout')
        self._check_personas()
        for values in grid_lib.combinations(self.axes):
            self.cell(values)

    @functools.cached_property
    def axes(self) -> tuple[grid_lib.Axis, ...]:
        """The axes of the grid, in its order."""
        return grid_lib.parse(self.grid, _AXES, self._read)

    @property
    def _named(self) -> tuple[str, ...]:
        """The values of the axis persona; none without it."""
        return next((x.values for x in self.axes if x.name == grid_lib.PERSONA), ())

    @property
    def personas(self) -> tuple[str, ...]:
        """The personas of the grid but for the global one, sorted."""
        return tuple(sorted(name for name in self._named if name != grid_lib.GLOBAL))

    @property
    def has_global(self) -> bool:
        """Whether a global mask is one of the personas."""
        return grid_lib.GLOBAL in self._named

    def source(self, template: str, persona: str | None) -> str:
        """What a cell reads: `--calibration` or `--heldout` of its persona."""
        if persona is None:
            return template
        named = self.personas if persona == grid_lib.GLOBAL else (persona,)
        return ','.join(template.replace(train_config.PERSONA, x) for x in named)

    def cell_name(self, values: dict[str, Any]) -> str:
        """The folder of a cell, under `cells/`."""
        return grid_lib.name_of(values, self.personas)

    def cell(self, values: dict[str, Any]) -> train_config.TrainConfig:
        """The settings of the cell with these values, an ordinary run's.

        Raises:
            InputError: naming the cell whose settings contradict each other.
        """
        name = self.cell_name(values)
        own = {key: x for key, x in values.items() if key != grid_lib.PERSONA}
        persona = values.get(grid_lib.PERSONA)
        own |= {
            'calibration': self.source(self.calibration, persona),
            'heldout': self.source(self.heldout, persona),
            'output_dir': str(pathlib.Path(self.output_dir) / CELLS / name),
            # The sweep as a whole is what --overwrite discards.
            'overwrite': False,
        }
        try:
            return train_config.TrainConfig(**(self._shared() | own))
        except errors.InputError as error:
            raise errors.InputError(f'--grid: cell {name}: {error}') from None

    def _shared(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SHARED}

    def _read(self, name: str, text: str) -> Any:
        """A setting's value, read as the command line reads it."""
        plain = train_config.TrainConfig(**self._shared())
        given = flags.to_flagfile(plain).splitlines()
        try:
            cfg = flags.parse(train_config.TrainConfig, [*given, f'--{name}={text}'])
        except errors.InputError as error:
            raise errors.InputError(f'--grid: {error}') from None
        return getattr(cfg, name)

    def _check_personas(self) -> None:
        for name in ('calibration', 'heldout'):
            value = getattr(self, name)
            if self._named and train_config.PERSONA not in value:
                raise errors.InputError(
                    f'--{name} must hold {train_config.PERSONA}, since persona is an '
                    f'axis of --grid, got {value!r}.'
                )
            if not self._named and train_config.PERSONA in value:
                raise errors.InputError(
                    f'--{name}={value} asks for a persona, and --grid has no axis '
                    'persona.'
                )
        if self.has_global and len(self.personas) < 2:
            raise errors.InputError(
                f'--grid: the persona {grid_lib.GLOBAL} is learned from all others, '
                'so there must be at least two of them.'
            )


_SHARED = frozenset(
    field.name for field in dataclasses.fields(train_config.TrainConfig)
) & frozenset(field.name for field in dataclasses.fields(SweepConfig))
_AXES = _SHARED - train_config.RESUMABLE - {'calibration', 'heldout'}

# More values on an axis extend a sweep: cells are named by their values.
RESUMABLE = train_config.RESUMABLE | {'grid'}

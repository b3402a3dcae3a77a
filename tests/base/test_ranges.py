"""Every number among the settings has a range, and is finite."""

import ast
import dataclasses
import importlib
import pathlib

import jax
import pytest

from ppjax.base import errors, flags, ranges
from ppjax.benchmarking import config as bench_config
from ppjax.benchmarking import inputs
from ppjax.evaluation.multiple_choice import benchmark_sources
from ppjax.parallel import sharding
from ppjax.planning import config as plan_config
from ppjax.recovery import config as recovery_config
from ppjax.training import config as train_config

_GIVEN = ['--base_model=m', '--calibration=c', '--output_dir=o']
_PACKAGE = pathlib.Path(flags.__file__).parents[1]


def _settings_classes():
    """Every class of the package with a `flags.setting`."""
    for path in _PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and 'flags.setting(' in ast.unparse(node):
                parts = path.relative_to(_PACKAGE.parent).with_suffix('').parts
                yield getattr(importlib.import_module('.'.join(parts)), node.name)


def test_every_number_of_every_verb_has_a_range_that_holds_its_default():
    classes = list(_settings_classes())
    assert len(classes) >= 10
    for settings in classes:
        # Not through __init__, which wants what has no default.
        found = object.__new__(settings)
        for field in dataclasses.fields(settings):
            object.__setattr__(found, field.name, field.default)
        ranges.check(found)


@pytest.mark.parametrize('value', ['inf', '-inf', 'nan', '1e38', '-1'])
@pytest.mark.parametrize(
    'name',
    [
        *('learning_rate', 'weight_decay', 'score_scale', 'warmup', 'anneal'),
        *('epochs', 'sparsity'),
    ],
)
def test_no_float_of_mask_learning_is_out_of_its_range(name, value):
    with pytest.raises(errors.InputError, match=rf'--{name} must be in [(\[]'):
        flags.parse(train_config.TrainConfig, [*_GIVEN, f'--{name}={value}'])


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('steps', 10**9),
        ('steps', -1),
        ('batch_size', 10**8),
        ('max_length', 10**12),
        ('heldout_every', -1),
        ('seed', -1),
        ('seed', 2**32),
        ('align', 10**30),
    ],
)
def test_no_whole_number_of_mask_learning_is_out_of_its_range(name, value):
    with pytest.raises(errors.InputError, match=rf'--{name} must be in \['):
        flags.parse(train_config.TrainConfig, [*_GIVEN, f'--{name}={value}'])


def test_settings_made_in_python_are_checked_too():
    given = {'base_model': 'm', 'calibration': 'c', 'output_dir': 'o'}
    with pytest.raises(errors.InputError, match='--learning_rate must be in'):
        train_config.TrainConfig(**given, learning_rate=float('inf'))
    with pytest.raises(errors.InputError, match='--weight_decay must be in'):
        recovery_config.RecoverConfig(**given, weight_decay=1e38)


@dataclasses.dataclass(frozen=True)
class _Forgetful:
    rate: float = flags.setting(0.5, 'A share.')


def test_a_float_without_a_range_cannot_be_read():
    with pytest.raises(TypeError, match='--rate has no range'):
        flags.parse(_Forgetful, [])


@pytest.mark.parametrize(
    'read',
    [
        lambda digits: plan_config.PlanConfig(base_model='m', personas=digits),
        lambda digits: sharding.make_mesh(f'fsdp:{digits}', jax.devices()),
    ],
)
def test_more_digits_than_python_reads_are_beyond_every_range(read):
    with pytest.raises(errors.InputError, match='--'):
        read('9' * 5000)


def test_more_rows_than_python_counts_are_all():
    source = f'demo:{"9" * 5000}'
    whole = inputs.queries(bench_config.BenchConfig(instructions=source))
    assert whole == inputs.queries(bench_config.BenchConfig(instructions='demo'))
    spec = benchmark_sources.parse('piqa', f'hub:{"9" * 5000}')
    assert spec.count == 10**18

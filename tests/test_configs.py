"""Every shipped flagfile resolves to what is stored beside this test."""

import pathlib
from typing import Any

import pytest

from ppjax.base import flags
from ppjax.comparing import cells as compare_cells
from ppjax.comparing import config as compare_config
from ppjax.evaluation import config as evaluation_config
from ppjax.masking import topk
from ppjax.recipes import config as recipe_config
from ppjax.recovery import config as recovery_config
from ppjax.sweeping import config as sweep_config
from ppjax.synthesis import config as synthesis_config
from ppjax.training import config

_ROOT = pathlib.Path(__file__).parent.parent
_STORED = pathlib.Path(__file__).parent / 'configs'
_FILES = sorted((_ROOT / 'configs').glob('*.flags'))
# What each kind of run cannot do without, where the file leaves it to the user.
_FILL = {
    config.TrainConfig: ('base_model', 'calibration', 'output_dir'),
    synthesis_config.SynthesizeConfig: (
        'base_model',
        'persona',
        'instructions',
        'output_dir',
    ),
    recipe_config.RunConfig: ('output_dir',),
    evaluation_config.EvaluateConfig: (
        'base_model',
        'output_dir',
        'eval_sets',
        'judge_model',
        'judge_url',
    ),
    recovery_config.RecoverConfig: ('run', 'output_dir'),
    sweep_config.SweepConfig: (),
    compare_config.CompareConfig: ('output_dir', 'instructions'),
}
# Where a name is no value.
_VALUES = {'judge_url': 'http://judge:8000/v1'}
_KINDS = {
    'evaluate-paper': evaluation_config.EvaluateConfig,
    'quickstart': recipe_config.RunConfig,
    'authors-scorer': synthesis_config.SynthesizeConfig,
    'small-figure-3a': compare_config.CompareConfig,
    'small-figure-3b': compare_config.CompareConfig,
    'small-table-1': compare_config.CompareConfig,
    'small-table-1-qwen': compare_config.CompareConfig,
    'small-table-3': compare_config.CompareConfig,
    'table-1': compare_config.CompareConfig,
    'table-13': compare_config.CompareConfig,
    'table-3': compare_config.CompareConfig,
    'table-4': compare_config.CompareConfig,
    'recover-paper': recovery_config.RecoverConfig,
    'sweep-estimators': sweep_config.SweepConfig,
    'sweep-objectives': sweep_config.SweepConfig,
    'sweep-schedules': sweep_config.SweepConfig,
    'sweep-starts': sweep_config.SweepConfig,
}


def _resolve(path: pathlib.Path) -> Any:
    kind = _KINDS.get(path.stem, config.TrainConfig)
    given = path.read_text()
    # Only paper.flags leaves the model open.
    fill = [
        f'--{name}={_VALUES.get(name, name.upper())}'
        for name in _FILL[kind]
        if f'--{name}=' not in given
        and not (name == 'base_model' and 'paper.flags' in given)
    ]
    return flags.parse(kind, [f'--flagfile={path}', *fill])


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_resolved_config_equals_the_stored_one(path, monkeypatch):
    monkeypatch.chdir(_ROOT)
    stored = _STORED / f'{path.stem}.txt'
    assert flags.to_flagfile(_resolve(path)) == stored.read_text()


def test_every_stored_config_has_its_flagfile():
    assert {p.stem for p in _FILES} == {p.stem for p in _STORED.glob('*.txt')}


@pytest.mark.parametrize(
    ('name', 'd_ff', 'keep'),
    [
        ('llama-3.2-3b-25', 8192, 6144),
        ('llama-3.2-3b-50', 8192, 4096),
        ('llama-3.1-8b-25', 14336, 10752),
        ('llama-3.1-8b-50', 14336, 7168),
        ('qwen2.5-3b-25', 11008, 8256),
        ('qwen2.5-3b-50', 11008, 5504),
        ('qwen2.5-7b-25', 18944, 14208),
        ('qwen2.5-7b-50', 18944, 9472),
        ('qwen2.5-32b-50', 27648, 13824),
    ],
)
def test_keep_sizes_are_the_papers(name, d_ff, keep, monkeypatch):
    monkeypatch.chdir(_ROOT)
    cfg = _resolve(_ROOT / 'configs' / f'{name}.flags')
    assert topk.keep_size(d_ff, cfg.sparsity, cfg.align) == keep


class _Hashes(dict):
    def __missing__(self, key):
        return key


@pytest.mark.parametrize(
    ('name', 'cells'),
    [('table-1', 290), ('table-3', 70), ('table-4', 60), ('table-13', 40)],
)
def test_every_cell_of_the_papers_tables_can_be_planned(name, cells, monkeypatch):
    monkeypatch.chdir(_ROOT)
    planned = compare_cells.plan(_resolve(_ROOT / f'configs/{name}.flags'), _Hashes())
    assert len({cell.identity for cell in planned}) == len(planned) == cells

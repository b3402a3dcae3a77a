"""Every shipped flagfile resolves to what is stored beside this test."""

import pathlib

import pytest

from ppjax import flags
from ppjax.masking import topk
from ppjax.training import config

_ROOT = pathlib.Path(__file__).parent.parent
_STORED = pathlib.Path(__file__).parent / 'configs'
_FILES = sorted((_ROOT / 'configs').glob('*.flags'))
_FILL = ('--calibration=CALIBRATION', '--output_dir=RUN')


def _resolve(path: pathlib.Path) -> config.TrainConfig:
    fill = list(_FILL)
    if path.name == 'paper.flags':
        fill.append('--base_model=MODEL')
    given = path.read_text()
    fill = [flag for flag in fill if flag.split('=')[0] + '=' not in given]
    return flags.parse(config.TrainConfig, [f'--flagfile={path}', *fill])


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

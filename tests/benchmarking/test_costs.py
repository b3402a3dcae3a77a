"""bench costs: its figures belong together, and the page shows them."""

import itertools
import json

import pytest
import transformers

from ppjax import bench
from ppjax.base import errors
from ppjax.benchmarking import config, costs, matrix_peak

_CURVES = 'persona=16,48;answer=4,16;batch=2,4;layers=0.5,1'


@pytest.fixture(scope='module')
def config_alone(tmp_path_factory):
    """A folder with a config.json and no weights."""
    path = tmp_path_factory.mktemp('config')
    transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def written(config_alone, tmp_path_factory):
    """(figures, page) of one run."""
    folder = tmp_path_factory.mktemp('costs')
    cfg = config.BenchConfig(
        base_model=str(config_alone),
        prompt_length=16,
        answer_length=8,
        batch_size=2,
        rounds=2,
        curves=_CURVES,
        reference='pytorch',
        result=str(folder / 'costs.json'),
        page=str(folder / 'costs.html'),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_peak, 'SIZE', 128)
        assert bench.main(cfg, 'costs') == 0
    found = json.loads((folder / 'costs.json').read_text('utf-8'))
    return found, (folder / 'costs.html').read_text('utf-8')


def test_every_curve_varies_its_axis_alone(written):
    found, _ = written
    base = {'persona': 16, 'answer': 8, 'batch': 2, 'layers': 4}
    wanted = {
        'persona': [16, 48],
        'answer': [4, 16],
        'batch': [2, 4],
        'layers': [2, 4],
    }
    for axis, values in wanted.items():
        shapes = [
            {name: point[name] for name in base} for point in found['curves'][axis]
        ]
        assert shapes == [base | {axis: value} for value in values]
    assert {name: found['base'][name] for name in base} == base


def test_figures_of_a_point_belong_together(written):
    found, _ = written
    for point in itertools.chain([found['base']], *found['curves'].values()):
        seconds = point['step_seconds']
        assert 0 < seconds['min'] <= seconds['median'] <= seconds['max']
        assert point['seconds_per_example'] == pytest.approx(
            seconds['median'] / point['batch']
        )
        assert point['utilisation'] == pytest.approx(
            point['useful_flops'] / seconds['median'] / found['matrix_peak_flops_per_s']
        )


def test_more_of_anything_costs_more_work_and_memory(written):
    found, _ = written
    for axis, (less, more) in found['curves'].items():
        assert more['useful_flops'] > less['useful_flops'], axis
        assert more['bytes']['temp'] > less['bytes']['temp'], axis
    sizes = [row['bytes'] for row in found['pruned_model']]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_parts_make_up_the_step(written):
    found, _ = written
    parts = found['parts']
    assert set(parts['seconds']) == {'attention', 'ffn', 'unembedding', 'other'}
    assert sum(parts['seconds'].values()) == pytest.approx(parts['step_seconds'])
    assert all(
        seconds > 0 for name, seconds in parts['seconds'].items() if name != 'other'
    )


def test_pytorch_takes_the_same_step(written):
    found, _ = written
    ours, theirs = (
        found[name]['step_seconds']['median'] for name in ('ppjax', 'pytorch')
    )
    assert found['ratio_to_reference'] == pytest.approx(theirs / ours)
    assert found['pytorch']['device'] == 'cpu'


def test_page_shows_curves_parts_and_sizes(written):
    found, page = written
    for axis in found['curves']:
        assert f'aria-label="Time against {axis}"' in page
        assert f'aria-label="Memory against {axis}"' in page
    assert 'Unembedding' in page
    median = found['curves']['persona'][1]['step_seconds']['median']
    assert f'{median:.3f} s' in page
    assert '75%' in page
    assert f'{found["ratio_to_reference"]:.2f} times as long' in page


@pytest.mark.parametrize(
    ('text', 'wrong'),
    [
        ('width=1,2', "unknown axis 'width'"),
        ('persona=a', 'is no axis with numbers'),
        ('persona', 'is no axis with values'),
        ('batch=0', 'at least 1'),
        ('layers=5', 'at least 1 and at most 4'),
        ('batch=1;batch=2', 'the axis batch is there twice'),
    ],
)
def test_bad_curves_are_refused(text, wrong):
    with pytest.raises(errors.InputError, match=wrong):
        costs.read_curves(text, 4)


def test_curves_may_be_none_and_come_sorted():
    assert costs.read_curves('', 4) == {}
    assert costs.read_curves('layers=1,0.5;batch=8,2,8', 4) == {
        'layers': [2, 4],
        'batch': [2, 8],
    }

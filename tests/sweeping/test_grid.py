"""Grids: what is read, what is refused, and the cells' names."""

import pytest

from ppjax.base import errors
from ppjax.sweeping import config, grid


def _config(grid_text, **changes):
    values = {
        'base_model': 'somewhere',
        'output_dir': 'out',
        'calibration': 'data/{persona}/train.jsonl',
        'heldout': 'demo:{persona}',
        'grid': grid_text,
    }
    return config.SweepConfig(**(values | changes))


_PLAIN = {'calibration': 'train.jsonl', 'heldout': 'test.jsonl'}


def test_values_have_the_types_of_their_settings():
    cfg = _config(
        ' persona=jack, walt;sparsity=0.25,5e-1; steps=7;estimator=ste,soft_topk;'
        'calibration_rows=110'
    )
    assert [(axis.name, axis.values) for axis in cfg.axes] == [
        ('persona', ('jack', 'walt')),
        ('sparsity', (0.25, 0.5)),
        ('steps', (7,)),
        ('estimator', ('ste', 'soft_topk')),
        ('calibration_rows', (110,)),
    ]
    assert [type(x) for x in (cfg.axes[1].values[1], cfg.axes[2].values[0])] == [
        float,
        int,
    ]


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('sparcity=0.5', r"unknown axis 'sparcity'. Did you mean: sparsity \?"),
        ('zzz=1', r"unknown axis 'zzz'. There are persona, align, .*width_floor\."),
        # Neither changes what is learned.
        ('log_every=1,2', "unknown axis 'log_every'"),
        ('output_dir=a,b', "unknown axis 'output_dir'"),
        ('seed=0;sparsity=x', '--sparsity=x'),
        ('seed=0,half', '--seed=half'),
        ('estimator=ste,stee', '--estimator=stee'),
        ('sparsity=0.5,1.5', r'--sparsity must be in \[0, 1\), got 1.5'),
        ('seed=0;seed=1', 'the axis seed is there twice'),
        ('seed=0,1,0', 'the axis seed has 0 twice'),
        ('sparsity=0.5,5e-1', 'the axis sparsity has 5e-1 twice'),
        ('seed=', "'seed=' is no axis with values"),
        ('seed', "'seed' is no axis with values"),
        ('seed=0,,1', "'seed=0,,1' is no axis with values"),
        ('seed=0;', "'' is no axis with values"),
        ('=1', "'=1' is no axis with values"),
    ],
)
def test_bad_grids_are_refused(text, said):
    with pytest.raises(errors.InputError, match=said):
        _config(text, **_PLAIN)


@pytest.mark.parametrize(
    ('text', 'changes', 'said'),
    [
        ('persona=a,b', _PLAIN, r'--calibration must hold \{persona\}'),
        ('persona=a,b', {'heldout': 'x'}, r'--heldout must hold \{persona\}'),
        ('seed=0,1', {}, 'has no axis persona'),
        ('persona=a,global', {}, 'at least two'),
        ('persona=a,a', {}, 'the axis persona has a twice'),
        ('persona=a', {'heldout': None}, '--heldout must be given'),
        ('', {}, '--grid must be given'),
    ],
)
def test_personas_and_files_must_agree(text, changes, said):
    with pytest.raises(errors.InputError, match=said):
        _config(text, **changes)


def test_cells_are_the_product_in_a_stable_order():
    cfg = _config('persona=a,b;seed=0,1')
    cells = list(grid.combinations(cfg.axes))
    assert cells == [
        {'persona': 'a', 'seed': 0},
        {'persona': 'a', 'seed': 1},
        {'persona': 'b', 'seed': 0},
        {'persona': 'b', 'seed': 1},
    ]


def test_a_cell_is_an_ordinary_run_of_its_values():
    cfg = _config(
        'persona=a,b,global;sparsity=0.5', batch_size=3, overwrite=True, seed=9
    )
    own = cfg.cell({'persona': 'b', 'sparsity': 0.5})
    assert own.calibration == 'data/b/train.jsonl'
    assert own.heldout == 'demo:b'
    assert (own.sparsity, own.batch_size, own.seed) == (0.5, 3, 9)
    assert own.output_dir == 'out/cells/persona-b--sparsity-0.5'
    assert not own.overwrite
    shared = cfg.cell({'persona': 'global', 'sparsity': 0.5})
    assert shared.calibration == 'data/a/train.jsonl,data/b/train.jsonl'
    assert shared.heldout == 'demo:a,demo:b'


def test_names_depend_on_values_alone():
    values = {'persona': 'jack', 'sparsity': 0.25, 'seed': 2}
    name = 'persona-jack--seed-2--sparsity-0.25'
    assert grid.name_of(values, ('jack', 'walt')) == name
    turned = dict(reversed(values.items()))
    assert grid.name_of(turned, ('jack', 'walt', 'x')) == name


def test_global_cells_are_named_by_whom_they_are_learned_from():
    one, other, more = (
        _config(f'persona={names},global').cell_name({'persona': 'global'})
        for names in ('a,b', 'b,a', 'a,b,c')
    )
    assert one == other
    assert one != more
    assert one.startswith('persona-global-')


@pytest.mark.parametrize(
    'value', ['runs/a/mask.pmask', 'a--b', '../up', 'x' * 300, 'Zoë', 'a b', '-x', '.']
)
def test_any_text_makes_one_folder_name(value):
    name = grid.name_of({'score_init': value}, ())
    assert '/' not in name
    assert name.isascii()
    assert len(name) < 80
    assert name != grid.name_of({'score_init': value + '/'}, ())


def test_labels():
    assert grid.label_of({'sparsity': 0.25, 'estimator': 'ste'}) == (
        'sparsity 0.25, estimator ste'
    )
    assert grid.label_of({}) == 'all settings'

"""What --masks may name, and masks that cannot be compared."""

import os

import pytest

from ppjax.analysis import sources
from ppjax.base import errors, flags
from ppjax.training import config as train_config

_KEPT = [[1, 1, 0, 0], [1, 0, 1, 0]]


def _read(*names):
    return [mask.path for mask in sources.read(','.join(map(str, names)))]


def _as_run(folder, seed):
    settings = train_config.TrainConfig(
        base_model='tiny', output_dir=str(folder), calibration='x.jsonl', seed=seed
    )
    (folder / 'config.flags').write_text(flags.to_flagfile(settings))


def test_files_folders_and_globs(write, tmp_path):
    run = write('run/mask.pmask', _KEPT)
    write('run/results/start_mask.pmask', _KEPT)
    loose = [write(f'loose/{name}.pmask', _KEPT) for name in 'ba']
    cells = [write(f'sweep/cells/seed-{x}/mask.pmask', _KEPT) for x in (0, 1)]
    cast = [write(f'cast/personas/{x}/mask.pmask', _KEPT) for x in ('jack', 'walt')]
    write('cast/shared/mask/mask.pmask', _KEPT)
    assert _read(run.parent) == [run]
    assert _read(loose[0], run) == [loose[0], run]
    assert _read(loose[0].parent) == loose[::-1]
    assert _read(tmp_path / 'sweep') == cells
    assert _read(tmp_path / 'cast') == cast
    assert _read(tmp_path / '*' / 'personas' / '*') == cast
    assert _read(tmp_path / 'loose' / '*.pmask') == loose[::-1]
    # Each once, whatever it is called.
    os.symlink(run.parent, tmp_path / 'again')
    assert _read(run, tmp_path / 'again', tmp_path / 'run') == [run]
    # A name may hold what globs mean by something.
    odd = write('loose/[x].pmask', _KEPT)
    assert _read(odd) == [odd]


def test_runs_of_a_glob_without_a_mask_are_named(write, tmp_path, capsys):
    done = write('runs/done/mask.pmask', _KEPT)
    (tmp_path / 'runs' / 'started').mkdir()
    assert _read(tmp_path / 'runs' / '*') == [done]
    assert f'{tmp_path}/runs/started' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('absent.pmask', 'does not exist'),
        ('no*.pmask', 'no mask is called'),
        ('empty', 'holds no mask'),
        ('text.pmask', 'no readable mask file'),
        ('', 'must name files'),
    ],
)
def test_what_is_no_mask_is_refused(write, tmp_path, name, said):
    good = write('good.pmask', _KEPT)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.pmask').write_text('no mask')
    where = str(tmp_path / name) if name else ''
    with pytest.raises(errors.InputError, match=said) as caught:
        sources.read(f'{good},{where}')
    assert name in str(caught.value)


def test_the_seed_is_that_of_the_run(write):
    run = write('run/mask.pmask', _KEPT)
    _as_run(run.parent, 7)
    other = write('other/mask.pmask', _KEPT)
    (other.parent / 'config.flags').write_text('--nothing=of mask learning\n')
    beside = write('run/beside.pmask', _KEPT)
    found = sources.read(f'{run},{other},{beside}')
    assert [mask.seed for mask in found] == [7, None, None]


@pytest.mark.parametrize(
    ('name', 'seed'),
    [
        ('jack-seed3.pmask', 3),
        ('jack/Seed_04/mask.pmask', 4),
        ('seed 12.pmask', 12),
        ('linseed3.pmask', None),
        ('seed3/jack.pmask', None),
        ('seed3-jack.pmask', None),
    ],
)
def test_or_that_of_its_name(write, name, seed):
    (found,) = sources.read(str(write(name, _KEPT)))
    assert found.seed == seed


def test_another_sparsity_needs_ranks(write):
    path = write('a.pmask', _KEPT)
    with pytest.raises(errors.InputError, match=r'a\.pmask: .*no other number'):
        sources.read(str(path), sparsity=0.75)


def test_masks_that_are_not_alike_are_named(write):
    first = write('first.pmask', _KEPT)
    for name, kept, changes, what in (
        ('base', _KEPT, {'base_fingerprint': 'e' * 64}, r'base models: .*eeeeeeeeeeee'),
        ('blocks', [[1, 0]], {'granularity': 'blocks'}, 'kinds of unit: .*channels'),
        ('sizes', [[1, 1, 0], [1, 0, 1]], {}, r'sizes: .*\(2, 4\).*\(2, 3\)'),
    ):
        other = write(f'{name}.pmask', kept, **changes)
        masks = sources.read(f'{first},{other}')
        with pytest.raises(errors.InputError, match=what) as caught:
            sources.check_alike(masks)
        assert str(first) in str(caught.value)
        assert str(other) in str(caught.value)
    sources.check_alike(sources.read(f'{first},{write("same.pmask", _KEPT, "Else.")}'))

"""What is refused before anything is written."""

import pytest

from ppjax.analysis import config, runner
from ppjax.base import errors


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'masks': '{folder}/jack.pmask'}, 'names one mask'),
        ({'masks': '{folder}/none'}, 'does not exist'),
        ({'labels': 'a,b,c'}, '2 different names'),
        ({'mask_sparsity': 0.9}, 'no other number'),
    ],
)
def test_no_folder_is_left(write, tmp_path, changes, said):
    for name in ('jack', 'walt'):
        write(f'{name}.pmask', [[1, 1, 0]], f'This is {name}.')
    run = tmp_path / 'run'
    given = {'masks': '{folder}/*.pmask', 'output_dir': str(run)} | changes
    given['masks'] = given['masks'].replace('{folder}', str(tmp_path))
    with pytest.raises(errors.InputError, match=said):
        runner.run(config.MasksConfig(**given))
    assert not run.exists()


def test_another_mask_in_the_same_file_is_another_comparison(write, tmp_path):
    for name, kept in (('jack', [[1, 1, 0]]), ('walt', [[0, 1, 1]])):
        write(f'{name}.pmask', kept, f'This is {name}.')
    given = {
        'masks': f'{tmp_path}/*.pmask',
        'output_dir': str(tmp_path / 'run'),
        'labels': 'Jack,Walt',
    }
    assert 'Jack' in runner.run(config.MasksConfig(**given))
    runner.run(config.MasksConfig(**given))
    write('walt.pmask', [[1, 0, 1]], 'This is walt.')
    with pytest.raises(errors.InputError, match=r'the content of .*walt'):
        runner.run(config.MasksConfig(**given))
    runner.run(config.MasksConfig(**given, overwrite=True))

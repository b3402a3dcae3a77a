"""`python -m ppjax.masks` from outside."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ppjax.masking import pmask


def _masks(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'ppjax.masks', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Three personas' masks of two repetitions each, exchanged a little."""
    folder = tmp_path_factory.mktemp('masks')
    rng = np.random.default_rng(0)
    for name in ('jack', 'walt', 'ida'):
        own = rng.random((2, 40))
        for repetition in ('first', 'second'):
            scores = own + 0.3 * rng.random(own.shape)
            mask = pmask.PersonaMask(
                scores.argsort(axis=1).argsort(axis=1) < 20,
                base_model='tiny',
                base_fingerprint='f' * 64,
                persona_sha256=name,
                system_prompt=f'You are {name}.',
            )
            pmask.save(folder / name / repetition / 'mask.pmask', mask)
    return folder


def test_a_comparison(files, tmp_path):
    run = tmp_path / 'run'
    command = (f'--masks={files}/*/*', f'--output_dir={run}')
    result = _masks(*command)
    assert result.returncode == 0, result.stderr
    assert 'One persona, two variants' in result.stdout
    assert 'first and second' in result.stdout
    assert f'Page: {run}/masks.html' in result.stderr
    names = {'masks.html', 'masks.md', 'masks.csv', 'masks.json', 'config.flags'}
    assert names <= {path.name for path in run.iterdir()}
    told = json.loads((run / 'masks.json').read_text())
    masks = [pmask.load(entry['file']).mask for entry in told['masks']]
    wanted = (masks[0] & masks[3]).sum() / (masks[0] | masks[3]).sum()
    assert told['jaccard'][0][3] == pytest.approx(wanted)
    within, between = (told['closeness'][x]['value'] for x in ('within', 'between'))
    assert within > between
    assert f'{within:.4f}' in result.stdout
    assert f'{within:.4f}' in (run / 'masks.html').read_text()
    assert json.loads((run / 'status.json').read_text())['state'] == 'done'
    # The same again is the same; other masks are another comparison.
    before = (run / 'masks.html').read_text()
    assert _masks(*command).returncode == 0
    assert (run / 'masks.html').read_text() == before
    other = _masks(f'--masks={files}/jack/*', f'--output_dir={run}')
    assert other.returncode == 1
    assert 'holds another run' in other.stderr
    assert '--masks' in other.stderr


def test_masks_made_of_others(files, tmp_path):
    jack, walt = (files / name / 'first' / 'mask.pmask' for name in ('jack', 'walt'))
    made = tmp_path / 'made.pmask'
    command = (f'--masks={jack},{walt}', '--operation=and', f'--output={made}')
    result = _masks(*command)
    assert result.returncode == 0, result.stderr
    wanted = pmask.load(jack).mask & pmask.load(walt).mask
    np.testing.assert_array_equal(pmask.load(made).chosen, wanted)
    assert f'keeps {wanted.sum()} of 80 channels' in result.stdout
    again = _masks(*command)
    assert again.returncode == 2
    assert 'is there already' in again.stderr
    told = _masks(f'--masks={made},{jack}', '--operation=info')
    assert told.returncode == 0, told.stderr
    assert 'of no persona, or of several' in told.stdout
    assert 'You are jack.' in told.stdout


@pytest.mark.parametrize(
    ('arguments', 'code', 'said'),
    [
        (['--masks={files}/jack/first'], 1, 'names one mask'),
        (['--masks={files}/*/*', '--embeddings=base'], 1, 'not on this machine'),
        (['--masks={files}/*/*', '--embeddings=openai'], 2, '--embedding_model'),
    ],
)
def test_what_is_wrong_is_one_line(files, tmp_path, arguments, code, said):
    run = tmp_path / 'run'
    given = [argument.replace('{files}', str(files)) for argument in arguments]
    result = _masks(*given, f'--output_dir={run}')
    assert result.returncode == code, result.stderr
    lines = [x for x in result.stderr.splitlines() if x.startswith('ERROR: ')]
    assert len(lines) == 1
    assert said in lines[0]
    assert 'Traceback' not in result.stderr
    assert not run.exists()

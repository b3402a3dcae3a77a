"""Neeko among the ways to recover: blocks of all personas, each measured with its own."""

import json

import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.comparing import config, methods, runner
from ppjax.recovery.neeko import blocks as blocks_lib

_PERSONAS = ('ferryman', 'clockmaker')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Few rows a persona, and one that asks what the other is measured on."""
    folder = tmp_path_factory.mktemp('rows')
    asked = demo.rows('clockmaker', 'test')[0]
    for name in _PERSONAS:
        for split, count in (('train', 4), ('test', 2)):
            rows = [row.messages for row in demo.rows(name, split)[:count]]
            if (name, split) == ('ferryman', 'train'):
                rows.append((rows[0][0], *asked.messages[1:]))
            lines = [json.dumps({'messages': [*messages]}) for messages in rows]
            (folder / f'{name}.{split}.jsonl').write_text('\n'.join(lines))
    return folder


def _settings(model, files, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': f'{files}/{{persona}}.train.jsonl',
        'heldout': f'{files}/{{persona}}.test.jsonl',
        'output_dir': str(output),
        'grid': 'method=dense;persona=ferryman,clockmaker;recovery=none,persona:neeko',
        'recover': '--steps=2 --batch_size=2 --lora_rank=2 --learning_rate=2e-2 '
        '--micro_batches=1',
    }
    return config.CompareConfig(**(values | changes))


def test_blocks_of_all_are_made_once_and_each_persona_has_its_own(
    chatty_model, files, tmp_path
):
    run = tmp_path / 'run'
    settings = _settings(chatty_model, files, run)
    shown = runner.compare(settings)
    assert 'Neeko on the rows of all personas' in (run / 'compare.html').read_text()
    [made] = run.glob('models/*--blocks-*')
    figures = json.loads((made / 'results' / 'recovery.json').read_text())
    # As many steps a persona as of other ways; the row that was asked about is out.
    assert figures['steps'] == 4
    assert [x['conversations'] for x in figures['personas']] == [4, 4]
    exported = {path.parent.name for path in run.glob('models/*/hf')}
    assert len(exported) == 2
    cells = {
        (x['values']['persona'], x['values']['recovery']): x['measures']['nll']
        for x in (json.loads(path.read_text()) for path in (run / 'cells').iterdir())
    }
    assert len(cells) == 4
    for name in _PERSONAS:
        assert cells[name, 'persona:neeko'] != cells[name, 'none']
        [hf] = [path for path in run.glob('models/*/hf') if name in path.parent.name]
        prompt = json.loads((hf / 'persona.json').read_text())['system_prompt']
        assert prompt == demo.rows(name, 'train')[0].system_prompt
    blocks = blocks_lib.load(made / blocks_lib.FILE)
    assert blocks.rank == 2
    assert runner.compare(settings) == shown
    assert len([*run.glob('models/*--blocks-*')]) == 1


def test_general_rows_have_no_personas():
    with pytest.raises(errors.InputError, match='wanted persona:neeko'):
        methods.Recovery.parse('general:neeko')
    assert methods.Recovery.parse('persona:neeko').how == 'neeko'

"""What a run learns from: common prefixes, and rows that are too long."""

import dataclasses

import pytest

from ppjax import demo
from ppjax.base import errors, run_directory
from ppjax.data import packing
from ppjax.learning import config, data, run
from ppjax.models import base_model


@pytest.fixture(scope='module')
def base(chatty_model):
    return base_model.open_base_model(str(chatty_model))


def _prepared(base, heldout, **changes):
    values = {'max_length': 1024, 'date': '2026-01-01'} | changes
    return data.prepare_data(
        base, demo.rows('ferryman', 'train')[:8], heldout, **values
    )


def test_another_personas_heldout_row_leaves_the_training_prefix_alone(base):
    own = demo.rows('ferryman', 'test')[:2]
    row = own[0]
    other = dataclasses.replace(
        row,
        messages=[{'role': 'system', 'content': 'Be someone else.'}, *row.messages[1:]],
    )
    alone, mixed = _prepared(base, []), _prepared(base, [own[1], other])
    assert mixed.prefix == alone.prefix
    assert alone.prefix > 50
    assert packing.common_prefix(mixed.heldout) < mixed.prefix


def test_the_prompt_is_the_one_that_all_personas_rows_share(base):
    rows = demo.rows('ferryman', 'train')[:4]

    def under(prompt, row):
        system = [{'role': 'system', 'content': prompt}] if prompt else []
        return dataclasses.replace(row, messages=[*system, *row.messages[1:]])

    def named(*prompts):
        mixed = [under(*pair) for pair in zip(prompts, rows, strict=True)]
        return data.prepare_data(
            base, mixed, [], max_length=1024, date='2026-01-01'
        ).system_prompt

    assert named('A', 'A', 'A', 'A') == 'A'
    # Plain rows among them are no other persona's.
    assert named('', 'A', 'A', '') == 'A'
    assert named('B', 'A', 'A', 'A') == named('', '', '', '') == ''


def test_rows_longer_than_the_models_positions_are_dropped_and_counted(base, capsys):
    rows = demo.rows('ferryman', 'test')[:4]
    lengths = sorted(len(x.tokens) for x in _prepared(base, rows).train)
    small = dataclasses.replace(
        base, config=dataclasses.replace(base.config, max_position=lengths[2])
    )
    capsys.readouterr()
    found = _prepared(small, [])
    kept = sum(length <= lengths[2] for length in lengths)
    assert len(found.train) == kept < 8
    said = capsys.readouterr()
    assert f'{8 - kept} over {lengths[2]} tokens dropped' in said.out + said.err
    none = dataclasses.replace(
        base, config=dataclasses.replace(base.config, max_position=9)
    )
    with pytest.raises(errors.InputError, match="fits the model's 9 positions"):
        _prepared(none, [])


def _steps(found, **changes):
    cfg = config.StepSettings(base_model='m', output_dir='o', **changes)
    groups = found.prompt_groups(cfg.batch_size)
    directory = run_directory.RunDirectory('o')
    return run.Run(cfg, found, directory, groups, learning_rate=1.0).total


def test_steps_that_nobody_could_draw_are_refused(base):
    found = _prepared(base, [])
    with pytest.raises(errors.InputError, match='--epochs=100000 makes 200000 opt'):
        _steps(found, epochs=1e5, batch_size=4)
    with pytest.raises(
        errors.InputError, match='--batch_size=50000 is more than the 8'
    ):
        _steps(found, epochs=1.0, batch_size=50_000)
    assert _steps(found, epochs=1.5, batch_size=4) == 3
    assert _steps(found, steps=7, epochs=1.5, batch_size=4) == 7

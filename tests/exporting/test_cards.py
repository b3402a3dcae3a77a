"""`export --card` and `--new_card`, and cards in the place of mask files."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax import export
from ppjax.base import errors, flags
from ppjax.exporting import config, record
from ppjax.masking import pmask
from ppjax.models import base_model
from ppjax.personas import prompts
from ppjax.training import config as train_config

_CARD = {
    'spec': 'chara_card_v2',
    'spec_version': '2.0',
    'data': {
        'name': 'Ida',
        'description': 'Bakes bread.',
        'extensions': {'depth_prompt': {'depth': 2}},
    },
}


@pytest.fixture
def run(chatty_model: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """What `train` leaves behind."""
    base = base_model.open_base_model(str(chatty_model))
    path = tmp_path / 'run'
    kept = np.zeros((base.config.num_layers, base.config.d_ff), bool)
    kept[:, ::2] = True
    prompt = prompts.persona_prompt('Bakes bread.')
    pmask.save(
        path / 'mask.pmask',
        pmask.PersonaMask(kept, base.name, base.fingerprint(), '0' * 64, prompt),
    )
    cfg = train_config.TrainConfig(
        base_model=base.name, calibration='demo:ferryman', output_dir=str(path), align=1
    )
    (path / 'config.flags').write_text(flags.to_flagfile(cfg))
    return path


def _export(run: pathlib.Path, **options: Any) -> None:
    export.main(config.ExportConfig(output_dir=str(run), **options))


def _mask_of(path: pathlib.Path) -> bytes:
    return pmask.to_bytes(pmask.load(path))


def test_a_card_comes_back_beside_the_model_and_serves_as_mask(
    run, chatty_model, tmp_path
):
    card = tmp_path / 'ida.json'
    card.write_text(json.dumps(_CARD))
    for _ in range(2):  # The same command again changes nothing.
        _export(run, card=str(card))
        found = json.loads((run / 'card' / 'ida.json').read_text())
        own = found['data']['extensions'].pop('ppjax')
        assert found == _CARD
        assert own['persona_prompt'] == prompts.persona_prompt('Bakes bread.')
    assert (run / 'hf' / 'config.json').exists()
    made = run / 'card' / 'ida.json'
    assert _mask_of(made) == (run / 'mask.pmask').read_bytes()
    # And it makes the same checkpoint on another machine.
    elsewhere = tmp_path / 'elsewhere'
    export.main(
        config.ExportConfig(
            materialize=True,
            mask=str(made),
            base_model=str(chatty_model),
            output_dir=str(elsewhere / 'hf'),
            card=str(card),
        )
    )
    weights = [x / 'model.safetensors' for x in (run / 'hf', elsewhere / 'hf')]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert _mask_of(elsewhere / 'card' / 'ida.json') == _mask_of(made)


def test_a_new_card_has_the_persona_text(run):
    _export(run, new_card='Ida Holm/2')
    [card] = (run / 'card').iterdir()
    assert card.name == 'Ida Holm_2.json'
    data = json.loads(card.read_text())['data']
    assert (data['name'], data['description']) == ('Ida Holm/2', 'Bakes bread.')
    assert _mask_of(card) == (run / 'mask.pmask').read_bytes()


def test_a_card_of_a_run_that_went_on_says_that_it_has_the_mask_alone(run, capfd):
    _export(run, new_card='Ida')
    assert 'carries the mask alone' not in capfd.readouterr().err
    file = run / 'hf' / record.FILE
    written = json.loads(file.read_text())
    written['identity']['run_sha256'] = '0' * 64
    file.write_text(json.dumps(written))
    _export(run, new_card='Ida')
    said = capfd.readouterr().err
    assert f'carries the mask alone; what was refitted or recovered is in {run}' in said


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'card': 'a.png', 'new_card': 'A'}, 'give one of them'),
        ({'new_card': '/'}, 'must be a name'),
        ({'card': 'a.png', 'model': 'hf', 'gguf': 'f32'}, '--model is none'),
        ({'persona': 'a.png'}, '--persona is of --gguf and --new_card'),
    ],
)
def test_contradictions_are_refused(run, options, message):
    with pytest.raises(errors.InputError, match=message):
        _export(run, **options)


def test_what_would_be_lost_is_refused(run, tmp_path):
    card = tmp_path / 'ida.json'
    card.write_text(json.dumps(_CARD))
    (run / 'card').mkdir()
    (run / 'card' / 'ida.json').write_text('mine')
    with pytest.raises(errors.InputError, match='no card that was written here'):
        _export(run, card=str(card))
    assert (run / 'card' / 'ida.json').read_text() == 'mine'
    _export(run, card=str(card), overwrite=True)
    made = run / 'card' / 'ida.json'
    with pytest.raises(errors.InputError, match='is where the card would go'):
        _export(run, card=str(made))
    assert _mask_of(made) == (run / 'mask.pmask').read_bytes()


def test_a_mask_of_another_base_in_a_card_is_refused(run, tmp_path, tiny_models):
    _export(run, new_card='Ida')
    with pytest.raises(errors.InputError, match='This mask is for'):
        export.main(
            config.ExportConfig(
                materialize=True,
                mask=str(run / 'card' / 'Ida.json'),
                base_model=str(tiny_models('qwen2').path),
                output_dir=str(tmp_path / 'other'),
            )
        )
    assert not (tmp_path / 'other').exists()

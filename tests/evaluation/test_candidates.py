"""Which models an evaluation compares, found from flags and run directory."""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.evaluation import candidates, config
from ppjax.masking import pmask
from ppjax.models import attention, base_model
from ppjax.models import masks as masks_lib


def _config(output_dir: Any, **changes: Any) -> config.EvaluateConfig:
    texts = {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in changes.items()
    }
    return config.EvaluateConfig(output_dir=str(output_dir), **texts)


def _find(output_dir: Any, **changes: Any) -> candidates.Candidates:
    return candidates.find(_config(output_dir, **changes))


def _refused(output_dir: Any, **changes: Any) -> str:
    with pytest.raises(errors.InputError) as caught:
        _find(output_dir, **changes)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def _logits(model: candidates.Candidate, length: int = 12) -> np.ndarray:
    loaded = model.load()
    tokens = jnp.arange(40, 40 + length)[None]

    @jax.jit
    def run(decoder, masks):
        positions = jnp.arange(length)[None]
        attend = attention.causal(1, length)
        hidden, _, _ = decoder(tokens, positions, masks, attend)
        return decoder.unembed(hidden)

    return np.asarray(run(loaded.decoder, loaded.masks))


def test_a_run_with_an_export_is_dense_and_pruned(make_run):
    run = make_run()
    found = _find(run.path)
    assert found.names == ['dense', 'pruned']
    assert [model.keep for model in found.models] == [40, 17]
    assert found['pruned'].base.reader.path == run.path / 'hf'
    assert (
        found['dense'].load().masks == found['pruned'].load().masks == masks_lib.DENSE
    )
    assert found.system_prompt == demo.rows('ferryman', 'test')[0].system_prompt
    assert found.run.path == run.path


def test_a_run_with_a_mask_alone_is_dense_and_masked(make_run):
    run = make_run(exported=False)
    found = _find(run.path)
    assert found.names == ['dense', 'masked']
    assert [model.keep for model in found.models] == [40, 17]
    masked = found['masked'].load()
    np.testing.assert_array_equal(masked.masks.channels, run.mask)
    # One copy of the weights serves both.
    assert masked.decoder is found['dense'].load().decoder
    assert found['dense'].load().masks == masks_lib.DENSE
    assert masked.system_prompt == found.system_prompt == found['masked'].system_prompt
    assert 'ferry' in found.system_prompt.lower()


def test_the_mask_and_the_export_of_a_run_are_one_model(make_run):
    run = make_run()
    found = _find(run.path, mask=run.path / 'mask.pmask', model=run.path / 'hf')
    assert found.names == ['dense', 'masked', 'pruned']
    dense, masked, pruned = map(_logits, found.models)
    np.testing.assert_allclose(masked, pruned, atol=2e-4)
    assert np.abs(masked - dense).max() > 0.1


def test_several_models_are_measured_under_their_names(make_run):
    run, other = make_run(), make_run('other', seed=1)
    found = _find(
        run.path,
        mask=f'a={run.path}/mask.pmask, b={other.path}/mask.pmask',
        model=f'c+d={other.path}/hf',
    )
    assert found.names == ['dense', 'a', 'b', 'c+d']
    np.testing.assert_array_equal(found['b'].mask.mask, other.mask)
    assert found['a'].load().decoder is found['b'].load().decoder
    np.testing.assert_allclose(_logits(found['b']), _logits(found['c+d']), atol=2e-4)


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'model': 'a=x,y'}, "each needs a name before its path, .*'y' has none"),
        ({'model': 'a/b=x,c=y'}, "'a/b=x' has none"),
        ({'mask': 'a=x,a=y'}, "--mask calls several models 'a'"),
        ({'mask': 'a=x', 'model': 'a=y'}, "--mask and --model call several models 'a'"),
        ({'model': 'dense=x'}, "--mask and --model call several models 'dense'"),
        ({'mask': 'a=x,'}, "'' has none"),
    ],
)
def test_names_of_models_that_are_refused(changes, said, tmp_path):
    with pytest.raises(errors.InputError, match=said):
        _config(tmp_path / 'new', base_model='smollm2-135m', **changes)


def test_a_folder_whose_name_looks_like_a_list(make_run, tmp_path):
    run = make_run()
    folder = tmp_path / 'a=x,b=y'
    shutil.copytree(run.path / 'hf', folder)
    assert _find(tmp_path / 'new', model=folder).names == ['pruned']


def test_models_are_loaded_once_and_when_needed(make_run, capsys):
    found = _find(make_run().path)
    assert not capsys.readouterr().err
    assert found['dense'].load() is found['dense'].load()
    said = capsys.readouterr().err
    assert said.count('Loading the dense model') == 1
    assert 'pruned' not in said


def test_dtype_is_that_of_the_flags(make_run):
    run = make_run()
    for model in _find(run.path, dtype='bfloat16').models:
        assert model.load().decoder.embedding.get_value().dtype == jnp.bfloat16


def test_a_run_that_is_still_learning(make_run):
    run = make_run(exported=False)
    (run.path / 'mask.pmask').unlink()
    assert 'has no mask yet' in _refused(run.path)


def test_flags_go_before_what_the_run_holds(make_run):
    run = make_run()
    other = make_run('other', seed=1)
    found = _find(run.path, mask=other.path / 'mask.pmask')
    assert found.names == ['dense', 'masked']
    np.testing.assert_array_equal(found['masked'].mask.mask, other.mask)
    found = _find(run.path, model=other.path / 'hf')
    assert found.names == ['dense', 'pruned']
    assert found['pruned'].base.reader.path == other.path / 'hf'


def test_without_a_run(make_run, chatty_model, tmp_path):
    run = make_run()
    new = tmp_path / 'new'
    assert _find(new, base_model=chatty_model).names == ['dense']
    found = _find(new, base_model=chatty_model, mask=run.path / 'mask.pmask')
    assert found.names == ['dense', 'masked']
    assert found.run is None
    found = _find(new, base_model=chatty_model, model=run.path / 'hf')
    assert found.names == ['dense', 'pruned']
    alone = _find(new, model=run.path / 'hf')
    assert alone.names == ['pruned']
    assert 'ferry' in alone.system_prompt.lower()
    assert not new.exists()


def test_identities_tell_models_and_masks_apart(make_run, chatty_model):
    runs = [make_run('a'), make_run('b', seed=1), make_run('c')]
    found = [
        _find(run.path, mask=run.path / 'mask.pmask', model=run.path / 'hf')
        for run in runs
    ]
    first, second, third = (
        [model.identity for model in models.models] for models in found
    )
    assert len({*first, *second}) == 5
    assert first[0] == second[0]
    assert first == third


def test_a_mask_of_another_base_is_refused(make_run, tiny_models, tmp_path):
    run = make_run()
    mask = run.path / 'mask.pmask'
    other = tiny_models('llama').path
    message = _refused(tmp_path / 'new', base_model=other, mask=mask)
    assert '2 layers of 40' in message
    assert 'has 3 layers of 52' in message
    file = dataclasses.replace(pmask.load(mask), base_fingerprint='00' * 32)
    pmask.save(mask, file)
    shutil.rmtree(run.path / 'hf')
    assert 'other weights, or another precision' in _refused(run.path)


def test_a_model_of_another_vocabulary_is_refused(make_run, tiny_models, chatty_model):
    other = tiny_models('llama').path
    message = _refused(make_run().path, model=other)
    assert 'embeds 97 tokens' in message
    assert 'another base model' in message


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'base_model': 'no/such/model'}, 'neither a directory'),
        ({'base_model': '/nowhere'}, 'neither a directory'),
        ({'model': '/nowhere'}, r'is no directory'),
        ({'mask': 'absent.pmask'}, 'absent.pmask does not exist'),
    ],
)
def test_what_is_absent_is_named(make_run, changes, message):
    assert message in _refused(make_run().path, **changes)


def test_a_damaged_run(make_run, tmp_path):
    run = make_run()
    (run.path / 'hf' / 'config.json').write_text('{"model_type": "unheard"}')
    assert 'unheard' in _refused(run.path)
    (run.path / 'hf' / 'config.json').unlink()
    (run.path / 'mask.pmask').write_bytes(b'nothing')
    assert 'no readable mask file' in _refused(run.path)
    (run.path / 'config.flags').write_text('--sparcity=0.5\n')
    message = _refused(run.path)
    assert str(run.path / 'config.flags') in message
    assert 'sparcity' in message


def test_the_base_of_a_run_may_be_elsewhere_now(make_run, chatty_model, tmp_path):
    run = make_run(base_model=str(tmp_path / 'gone'))
    assert 'gone' in _refused(run.path)
    found = _find(run.path, base_model=chatty_model)
    assert found.names == ['dense', 'pruned']


# --- Held-out conversations ---------------------------------------------------


def _heldout(output_dir: pathlib.Path, **changes: Any) -> str:
    cfg = _config(output_dir, **changes)
    return candidates.heldout_source(cfg, candidates.find(cfg))


def test_heldout_is_the_flags_then_the_runs_copy_then_its_source(make_run, tmp_path):
    run = make_run()
    assert _heldout(run.path) == str(run.heldout)
    copy = run.path / 'calibration' / 'test.jsonl'
    copy.parent.mkdir()
    shutil.move(run.heldout, copy)
    assert _heldout(run.path) == str(copy)
    moved = tmp_path / 'elsewhere'
    shutil.move(run.path, moved)
    assert _heldout(moved) == str(moved / 'calibration' / 'test.jsonl')
    assert _heldout(moved, heldout='demo:ferryman') == 'demo:ferryman'


def test_no_heldout_conversations(make_run, chatty_model, tmp_path):
    for cfg in (
        _config(make_run(heldout=None).path),
        _config(tmp_path / 'new', base_model=chatty_model),
    ):
        found = candidates.find(cfg)
        with pytest.raises(errors.InputError, match='name a file of them with --held'):
            candidates.heldout_source(cfg, found)


def test_an_exported_directory_needs_no_persona_file(make_run, tmp_path):
    run = make_run()
    (run.path / 'hf' / 'persona.json').unlink()
    assert _find(tmp_path / 'new', model=run.path / 'hf').system_prompt == ''
    (run.path / 'hf' / 'persona.json').write_text('{"system_prompt": 3}')
    assert 'no text under "system_prompt"' in _refused(
        tmp_path / 'new', model=run.path / 'hf'
    )


def test_a_home_directory_is_found(make_run, monkeypatch, tmp_path):
    run = make_run()
    monkeypatch.setenv('HOME', str(tmp_path))
    found = _find('~/run', mask='~/run/mask.pmask', model='~/run/hf')
    assert found.names == ['dense', 'masked', 'pruned']
    assert isinstance(found['pruned'].base, base_model.BaseModel)
    assert run.path == tmp_path / 'run'


def test_templates_are_told_the_runs_date(tmp_path):
    def date(**changes: Any) -> str:
        return _config(tmp_path, base_model='b', **changes).template_date

    assert date() == '2026-01-01'
    (tmp_path / 'config.flags').write_text('--seed=1\n--date=2031-02-03\n')
    assert date() == '2031-02-03'
    (tmp_path / 'stages').mkdir()
    (tmp_path / 'stages' / 'train.flags').write_text('--date=2032-03-04\n')
    assert date() == '2032-03-04'
    assert date(date='1999-12-31') == '1999-12-31'

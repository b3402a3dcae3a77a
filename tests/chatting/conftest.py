"""A tiny chat model in files, loaded, and a mask for it."""

import json
import pathlib

import numpy as np
import pytest
import torch
import transformers

from ppjax.masking import apply, pmask


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory, smollm2_tokenizer) -> pathlib.Path:
    """A model that never stops by itself, with a persona like an exported one's."""
    path = tmp_path_factory.mktemp('model')
    smollm2_tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=24,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, mean=float('norm' in name), std=0.3)
    model.save_pretrained(path)
    (path / 'persona.json').write_text(json.dumps({'system_prompt': 'Be brief.'}))
    return path


@pytest.fixture(scope='module')
def loaded(model_dir) -> apply.LoadedModel:
    return apply.load_masked(model=str(model_dir), dtype='float32')


@pytest.fixture(scope='module')
def mask_file(tmp_path_factory, loaded, model_dir) -> pathlib.Path:
    order = np.random.default_rng(0).random((2, 52)).argsort(axis=1)
    path = tmp_path_factory.mktemp('mask') / 'keeper.pmask'
    mask = pmask.PersonaMask(
        mask=order < 31,
        base_model=str(model_dir),
        base_fingerprint=loaded.base.fingerprint(),
        persona_sha256='0' * 64,
        system_prompt='Count the ships.',
    )
    pmask.save(path, mask)
    return path

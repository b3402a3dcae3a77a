"""A model small enough to train in seconds, with a real chat tokenizer."""

import json
import pathlib

import pytest
import torch
import transformers

from ppjax import demo
from ppjax.models import base_model


@pytest.fixture(scope='session')
def chatty_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A two-layer Llama with SmolLM2's tokenizer and chat template."""
    path = tmp_path_factory.mktemp('chatty')
    tokenizer = base_model.open_base_model(base_model.SMOLLM2).tokenizer()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for parameter in model.parameters():
        # Large, so that FFN channels matter next to the embedding.
        parameter.data.normal_(0, 0.6)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope='session')
def calibration_files(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, pathlib.Path]:
    """(calibration, held-out) JSONL files of a few demo rows."""
    folder = tmp_path_factory.mktemp('calibration')
    paths = []
    for split, count in (('train', 20), ('test', 6)):
        rows = demo.rows('ferryman', split)[:count]
        path = folder / f'{split}.jsonl'
        path.write_text(
            ''.join(
                json.dumps({'messages': list(row.messages), 'query_id': row.query_id})
                + '\n'
                for row in rows
            )
        )
        paths.append(path)
    return paths[0], paths[1]

"""Tiny random chat models of each family, as transformers saves them."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

import pytest
import torch
import transformers

from ppjax.models import base_model
from tests.models import gguf_tokenizers

_CONFIGS: dict[str, tuple[type[transformers.PretrainedConfig], dict[str, Any]]] = {
    'llama': (
        transformers.LlamaConfig,
        {
            'head_dim': 24,
            'attention_bias': True,
            # Some wavelengths are kept, some blended, some stretched.
            'rope_parameters': {
                'rope_type': 'llama3',
                'rope_theta': 777.0,
                'factor': 3.0,
                'low_freq_factor': 1.0,
                'high_freq_factor': 4.0,
                'original_max_position_embeddings': 128,
            },
        },
    ),
    'qwen2': (transformers.Qwen2Config, {'tie_word_embeddings': True}),
    'qwen3': (transformers.Qwen3Config, {'head_dim': 24}),
}
_PRE = {'llama': 'llama-bpe', 'qwen2': 'qwen2', 'qwen3': 'qwen2'}
_ANSWER = '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
# Ids that the model embeds and the tokenizer does not know.
_HOLES = 5


def tokenizer_of(pre: str) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=gguf_tokenizers.reference(pre),
        bos_token='<|endoftext|>',
        eos_token='<|im_end|>',
        chat_template=gguf_tokenizers.TEMPLATE + _ANSWER,
    )


@pytest.fixture(scope='session')
def tiny_chat(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], base_model.BaseModel]:
    """Makes the model of a family, once a session."""

    @functools.cache
    def make(family: str) -> base_model.BaseModel:
        config_class, overrides = _CONFIGS[family]
        tokenizer = tokenizer_of(_PRE[family])
        config = config_class(
            **{
                'vocab_size': len(tokenizer) + _HOLES,
                'hidden_size': 64,
                'intermediate_size': 96,
                'num_hidden_layers': 2,
                'num_attention_heads': 4,
                'num_key_value_heads': 2,
                'rms_norm_eps': 1e-3,
                'max_position_embeddings': 512,
                'tie_word_embeddings': False,
                'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
                'bos_token_id': tokenizer.bos_token_id,
                'eos_token_id': tokenizer.eos_token_id,
            }
            | overrides
        )
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.normal_(0, 0.25)
                if 'norm' in name:
                    weight.add_(1)
        path = tmp_path_factory.mktemp(f'chat-{family}')
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return base_model.open_base_model(str(path))

    return make


@pytest.fixture
def model_folder(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> Callable[[str], pathlib.Path]:
    """A copy of a family's directory, to be changed."""

    def copy(family: str) -> pathlib.Path:
        path = tmp_path / 'hf'
        path.mkdir()
        for file in tiny_chat(family).reader.path.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        return path

    return copy

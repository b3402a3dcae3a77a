"""Tokenizers as GGUF metadata."""

from collections.abc import Callable
import json
from typing import Any

import gguf
import pytest
import tokenizers
import transformers

from ppjax.base import errors
from ppjax.exporting.gguf import vocabulary
from ppjax.models import base_model
from tests.models import gguf_tokenizers

Kind = gguf.TokenType


def _tokenizer(
    pre: str, change: Callable[[dict[str, Any]], None] = lambda rules: None, **options
) -> transformers.PreTrainedTokenizerFast:
    rules = json.loads(gguf_tokenizers.reference(pre).to_str())
    change(rules)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(rules)),
        **{
            'bos_token': '<|endoftext|>',
            'eos_token': '<|im_end|>',
            'chat_template': gguf_tokenizers.TEMPLATE,
        }
        | options,
    )


@pytest.mark.parametrize('pre', gguf_tokenizers.FAMILIES)
def test_families_are_recognised_by_how_they_split(pre: str) -> None:
    tokenizer = _tokenizer(pre)
    found = vocabulary.metadata(tokenizer, len(tokenizer) + 2)
    assert found['tokenizer.ggml.pre'] == pre
    assert found['tokenizer.ggml.model'] == 'gpt2'
    tokens, kinds = (found[f'tokenizer.ggml.{x}'] for x in ('tokens', 'token_type'))
    assert tokens[:-2] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    size = len(tokenizer)
    assert tokens[-2:] == [f'[PAD{size}]', f'[PAD{size + 1}]']
    assert kinds[-2:] == [Kind.UNUSED] * 2
    of = dict(zip(tokens, kinds, strict=True))
    assert of['<|im_end|>'] == Kind.CONTROL
    assert of['<think>'] == Kind.USER_DEFINED
    assert of['a'] == Kind.NORMAL
    rules = json.loads(gguf_tokenizers.reference(pre).to_str())['model']
    assert found['tokenizer.ggml.merges'] == [' '.join(x) for x in rules['merges']]
    assert found['tokenizer.ggml.bos_token_id'] == tokenizer.bos_token_id
    assert found['tokenizer.ggml.eos_token_id'] == tokenizer.eos_token_id
    assert found['tokenizer.chat_template'] == gguf_tokenizers.TEMPLATE
    assert found['tokenizer.ggml.add_bos_token'] is False
    assert 'tokenizer.ggml.eot_token_id' not in found


def test_the_real_one(
    smollm2_base: base_model.BaseModel,
    smollm2_tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    found = vocabulary.metadata(smollm2_tokenizer, 49152)
    for key, value in found.items():
        known = smollm2_base.reader.metadata(key)
        if key == 'tokenizer.ggml.add_eos_token':
            assert value is False
        elif key == 'tokenizer.ggml.token_type':
            # The unknown one is special to transformers; a tokenizer knows no more.
            assert {(a, b) for a, b in zip(value, known, strict=True) if a != b} <= {
                (Kind.CONTROL, Kind.UNKNOWN)
            }
        else:
            assert value == known, key


def test_text_begins_as_the_tokenizer_begins_it() -> None:
    def begin(rules: dict[str, Any]) -> None:
        token = {'SpecialToken': {'id': '<|endoftext|>', 'type_id': 0}}
        index = rules['model']['vocab']['<|endoftext|>']
        rules['post_processor'] = {
            'type': 'TemplateProcessing',
            'single': [token, {'Sequence': {'id': 'A', 'type_id': 0}}],
            'pair': [
                {'Sequence': {'id': 'A', 'type_id': 0}},
                {'Sequence': {'id': 'B', 'type_id': 1}},
            ],
            'special_tokens': {
                '<|endoftext|>': {
                    'id': '<|endoftext|>',
                    'ids': [index],
                    'tokens': ['<|endoftext|>'],
                }
            },
        }

    tokenizer = _tokenizer('llama-bpe', begin)
    found = vocabulary.metadata(tokenizer, len(tokenizer))
    assert found['tokenizer.ggml.add_bos_token'] is True
    assert found['tokenizer.ggml.add_eos_token'] is False


def test_a_turn_may_end_with_another_token() -> None:
    tokenizer = _tokenizer('qwen2', eos_token='<|endoftext|>')
    found = vocabulary.metadata(tokenizer, len(tokenizer))
    end = tokenizer.convert_tokens_to_ids('<|im_end|>')
    assert found['tokenizer.ggml.eot_token_id'] == end


def test_a_filler_never_takes_the_name_of_a_token() -> None:
    size = len(_tokenizer('gpt-2'))

    def name(rules: dict[str, Any]) -> None:
        rules['model']['vocab'][f'[PAD{size + 1}]'] = size

    tokenizer = _tokenizer('gpt-2', name)
    tokens = vocabulary.metadata(tokenizer, size + 3)['tokenizer.ggml.tokens']
    assert tokens[-3:] == [f'[PAD{size + 1}]', f'[PAD{size + 1}]_', f'[PAD{size + 2}]']


@pytest.mark.parametrize(
    'change',
    [
        lambda rules: rules.update(normalizer={'type': 'NFKC'}),
        lambda rules: rules['pre_tokenizer'].update(add_prefix_space=True),
        lambda rules: rules['model'].update(ignore_merges=True),
    ],
)
def test_other_ways_of_splitting_are_refused(change: Callable[[Any], None]) -> None:
    tokenizer = _tokenizer('gpt-2', change)
    with pytest.raises(errors.InputError, match='is known: gpt-2, llama-bpe'):
        vocabulary.metadata(tokenizer, len(tokenizer))


def test_tokenizers_of_other_kinds_are_refused() -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({'a': 0, '<u>': 1}, unk_token='<u>')
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(errors.InputError, match=r'WordLevel.*byte-level BPE alone'):
        vocabulary.metadata(tokenizer, 2)


def test_more_tokens_than_the_model_embeds() -> None:
    tokenizer = _tokenizer('smollm')
    with pytest.raises(errors.InputError, match=r'has 3 tokens beyond the \d+'):
        vocabulary.metadata(tokenizer, len(tokenizer) - 3)


def test_tokens_that_take_space_around_them() -> None:
    tokenizer = _tokenizer('smollm')
    tokenizer.add_tokens([tokenizers.AddedToken('<mask>', lstrip=True)])
    with pytest.raises(errors.InputError, match=r"'<mask>' takes or needs"):
        vocabulary.metadata(tokenizer, len(tokenizer))


@pytest.mark.parametrize('template', ['{% for m in %}', '{{ nothing.at.all }}'])
def test_templates_that_cannot_be_read(template: str) -> None:
    tokenizer = _tokenizer('qwen2', chat_template=template)
    with pytest.raises(errors.InputError, match='chat template'):
        vocabulary.metadata(tokenizer, len(tokenizer))


def test_without_a_template_there_is_none() -> None:
    tokenizer = _tokenizer('qwen2', chat_template=None)
    found = vocabulary.metadata(tokenizer, len(tokenizer))
    assert 'tokenizer.chat_template' not in found

"""Which tokens end an answer, whoever says so."""

import copy
import json
import types

import pytest
import transformers

from ppjax.base import errors
from ppjax.data import stop_tokens
from ppjax.exporting import hf_export
from ppjax.models import base_model


def _own(index: int | None) -> types.SimpleNamespace:
    return types.SimpleNamespace(eos_token_id=index, chat_template=None)


@pytest.mark.parametrize(
    ('config', 'own', 'want'),
    [
        ({}, 5, {5}),
        ({}, None, set()),
        ({'eos_token_id': 7}, 5, {5, 7}),
        ({'eos_token_id': [7, 0, 7]}, None, {0, 7}),
        ({'eos_token_id': None}, 5, {5}),
    ],
)
def test_stop_ids_that_are_listed(config, own, want):
    assert stop_tokens.stop_ids(config, _own(own)) == frozenset(want)


@pytest.mark.parametrize('bad', ['7', [7, '8'], 7.0, [[7]], {'a': 1}])
def test_other_stop_ids_are_refused(bad):
    with pytest.raises(errors.InputError, match='eos_token_id'):
        stop_tokens.stop_ids({'eos_token_id': bad}, _own(None))


@pytest.fixture
def finetuned(smollm2_tokenizer):
    """ChatML turns on a model whose end of text is another token."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.eos_token = '<|endoftext|>'
    return tokenizer


def _ids(tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def test_the_template_s_end_of_turn_is_always_one(finetuned):
    end, turn = _ids(finetuned, '<|endoftext|>', '<|im_end|>')
    assert end != turn
    assert stop_tokens.stop_ids({'eos_token_id': end}, finetuned) == {end, turn}


@pytest.mark.parametrize(
    ('template', 'want'),
    [
        # Thoughts before the answer, nothing after it, text after it, and a refusal.
        (
            '{% for m in messages %}<think>{{ m.content }}<|im_end|>\n{% endfor %}',
            ['<|im_end|>'],
        ),
        ('{% for m in messages %}{{ m.content }}{% endfor %}', []),
        ('{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}', []),
        ("{{ raise_exception('no') }}", []),
    ],
)
def test_other_templates(finetuned, template, want):
    finetuned.chat_template = template
    [end] = _ids(finetuned, '<|endoftext|>')
    assert stop_tokens.stop_ids({}, finetuned) == {end, *_ids(finetuned, *want)}


def test_an_export_lists_it(chatty_model, finetuned, tmp_path):
    end, turn = _ids(finetuned, '<|endoftext|>', '<|im_end|>')
    base = base_model.open_base_model(str(chatty_model))
    hf_export.export_model(
        base,
        tmp_path / 'hf',
        dtype='float32',
        tokenizer=finetuned,
        model_card='',
        system_prompt='',
    )
    listed = transformers.GenerationConfig.from_pretrained(tmp_path / 'hf').eos_token_id
    before = base.generation_config()['eos_token_id']
    assert before == turn  # Of SmolLM2: the other one is new.
    assert listed == [turn, end]
    found = json.loads((tmp_path / 'hf' / 'generation_config.json').read_text())
    assert stop_tokens.stop_ids(found, finetuned) == {end, turn}


def test_nothing_to_add_changes_nothing(smollm2_base, smollm2_tokenizer):
    config = smollm2_base.generation_config()
    assert stop_tokens.with_stop_ids(config, smollm2_tokenizer) == config

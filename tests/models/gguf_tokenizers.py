"""Tokenizers of published families, small, as GGUF and as transformers has them."""

import json
import pathlib
from typing import Any

import gguf
import hypothesis.strategies as st
import numpy as np
import tokenizers
from tokenizers import trainers

Kind = gguf.TokenType


CONVERSATION = [
    {'role': 'system', 'content': 'You are Ada, born 1815.'},
    {'role': 'user', 'content': "What's  12 + 30?\n\n```py\nx  =\t1\n```"},
    {'role': 'assistant', 'content': 'It is 42 🚀, naturally.'},
]


TEXTS = [
    '',
    ' ',
    '\n',
    'Hello world',
    ' leading and trailing ',
    "I've 'told she'LL WE'RE isn't it's 'S",
    'a b  c   d    e\tf\t\tg\n h\n\n i \n\n\n   j  \r\n k',
    'def f(x):\n    if x >= 2:\n\t\treturn {"a": [x, -x]}  # note\n\n\n    pass\n',
    'Café déjà vu, Ångström: e\u0301 A\u030a ﬁ ½ ² ① ٣ ४',
    '日本語の文字、한국어, русский язык, ελληνικά, עברית, العربية, हिन्दी, ไทย',
    '🚀 😶\u200d🌫️ 👩\u200d👩\u200d👧 🇫🇷 ✅!!! ...??',
    'NBSP\u00a0thin\u2009ideographic\u3000zero\u200bwidth\ufeff',
    '0 1 12 123 1234 12345 3.14 1,000,000 -7 x86 2nd  9   99',
    'http://a.example/b?c=d&e=%20f#g user_name@host snake_case CamelCase',
    '<|im_start|>user\nhi<|im_end|>\n<|im_ start|> <|endoftext|>',
    '=======-------```````......!!!!!!??????',
    'x' * 70 + ' ' * 70 + '\n' * 9,
]


# Text with neighbours that plain `st.text()` would hardly ever put together.
MIXED = st.lists(
    st.sampled_from([*'aZé9٣½日🚀.,\'" \t\n\r\u00a0\u3000', "'ll", '  ', 'The', ' of'])
    | st.text(max_size=3),
    max_size=12,
).map(''.join)


ANY_TEXT = st.text(max_size=20) | MIXED


GPT2_BYTES = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
}


def split(pattern: str) -> dict[str, Any]:
    split = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
    return {
        'type': 'Sequence',
        'pretokenizers': [
            {**split, 'pattern': {'Regex': pattern}},
            {**GPT2_BYTES, 'use_regex': False},
        ],
    }


# What the tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen 2 say, in their words.
FAMILIES: dict[str, dict[str, Any]] = {
    'gpt-2': {'pre_tokenizer': GPT2_BYTES},
    'smollm': {
        'pre_tokenizer': {
            'type': 'Sequence',
            'pretokenizers': [
                {'type': 'Digits', 'individual_digits': True},
                GPT2_BYTES,
            ],
        }
    },
    'llama-bpe': {
        'pre_tokenizer': split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?"
            r'[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
        ),
        'ignore_merges': True,
    },
    'qwen2': {
        'normalizer': {'type': 'NFC'},
        'pre_tokenizer': split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?"
            r'[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
        ),
    },
}


CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']


USER_DEFINED = ['<think>', '</think>']


# Merges that betray the splitting: SmolLM and Qwen part digits, GPT-2 and SmolLM
# keep "DQ" of "'DQ" whole, Llama 3 and Qwen cut it after the D.
PROBES = [('1', '2'), ('D', 'Q')]


UNSEEN = ["x'DQ 1212", ' Nabuchodonosor <think>12</think>']


UNUSED = ['[PAD900]', '[PAD901]']


TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}'
)


def assembled(pre: str, model: dict[str, Any], added: list[dict[str, Any]]):
    family = dict(FAMILIES[pre])
    return tokenizers.Tokenizer.from_str(
        json.dumps(
            {
                'version': '1.0',
                'truncation': None,
                'padding': None,
                'added_tokens': added,
                'normalizer': family.pop('normalizer', None),
                'pre_tokenizer': family.pop('pre_tokenizer'),
                'post_processor': None,
                'decoder': GPT2_BYTES,
                'model': {
                    'type': 'BPE',
                    'dropout': None,
                    'unk_token': None,
                    'continuing_subword_prefix': None,
                    'end_of_word_suffix': None,
                    'fuse_unk': False,
                    'byte_fallback': False,
                    **family,
                    **model,
                },
            }
        )
    )


def trained(pre: str) -> dict[str, Any]:
    """Vocabulary and merges learned from `TEXTS` under a family's splitting."""
    learner = assembled(pre, {'vocab': {}, 'merges': []}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Control tokens are no text to learn merges from.
    learner.train_from_iterator([t for t in TEXTS if '<|' not in t] * 3, trainer)
    model = json.loads(learner.to_str())['model']
    return {'vocab': model['vocab'], 'merges': model['merges']}


def reference(pre: str) -> tokenizers.Tokenizer:
    model = trained(pre)
    for left, right in PROBES:
        if left + right not in model['vocab']:
            model['vocab'][left + right] = len(model['vocab'])
            model['merges'].append([left, right])
    # A word that no merge leads to: found with ignore_merges only.
    model['vocab']['ĠNabuchodonosor'] = len(model['vocab'])
    added = []
    for token in CONTROL + USER_DEFINED:
        index = len(model['vocab'])
        model['vocab'][token] = index
        flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
        added.append(
            {'id': index, 'content': token, 'special': token in CONTROL, **flags}
        )
    return assembled(pre, model, added)


def write(path: pathlib.Path, pre: str, metadata: dict[str, Any]) -> pathlib.Path:
    """A GGUF of a 1-layer model around the family's synthetic vocabulary.

    `metadata` replaces keys or, None, drops them; a function gets the size.
    """
    arch = 'qwen2' if pre == 'qwen2' else 'llama'
    model = json.loads(reference(pre).to_str())['model']
    tokens = [*sorted(model['vocab'], key=model['vocab'].__getitem__), *UNUSED]
    kinds = dict.fromkeys(CONTROL, Kind.CONTROL)
    kinds |= dict.fromkeys(USER_DEFINED, Kind.USER_DEFINED)
    kinds |= dict.fromkeys(UNUSED, Kind.UNUSED)
    values: dict[str, Any] = {
        f'{arch}.block_count': 1,
        f'{arch}.context_length': 321,
        f'{arch}.embedding_length': 8,
        f'{arch}.feed_forward_length': 8,
        f'{arch}.attention.head_count': 2,
        f'{arch}.attention.head_count_kv': 2,
        f'{arch}.attention.layer_norm_rms_epsilon': 1e-3,
        f'{arch}.rope.freq_base': 777.0,
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': [
            int(kinds.get(token, Kind.NORMAL)) for token in tokens
        ],
        'tokenizer.ggml.merges': [' '.join(pair) for pair in model['merges']],
        'tokenizer.ggml.bos_token_id': tokens.index('<|endoftext|>'),
        'tokenizer.ggml.eos_token_id': tokens.index('<|im_end|>'),
        'tokenizer.chat_template': TEMPLATE,
        **metadata,
    }
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if callable(value):
            value = value(len(tokens))
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    shapes = {
        'token_embd.weight': (len(tokens), 8),
        'output_norm.weight': (8,),
        'blk.0.attn_norm.weight': (8,),
        'blk.0.ffn_norm.weight': (8,),
    }
    for stem in ('attn_q', 'attn_k', 'attn_v', 'attn_output'):
        shapes[f'blk.0.{stem}.weight'] = (8, 8)
    for stem in ('ffn_gate', 'ffn_up', 'ffn_down'):
        shapes[f'blk.0.{stem}.weight'] = (8, 8)
    if arch == 'qwen2':
        for stem in ('attn_q', 'attn_k', 'attn_v'):
            shapes[f'blk.0.{stem}.bias'] = (8,)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

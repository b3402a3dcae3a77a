"""GGUF tokenizers against Hugging Face's and llama.cpp's ids."""

import json
import pathlib
import subprocess
import sys
from typing import Any
import unicodedata

import gguf
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import trainers
import transformers

from ppjax.base import errors
from ppjax.models import gguf_reader, gguf_tokenizer

_Kind = gguf.TokenType

_CONVERSATION = [
    {'role': 'system', 'content': 'You are Ada, born 1815.'},
    {'role': 'user', 'content': "What's  12 + 30?\n\n```py\nx  =\t1\n```"},
    {'role': 'assistant', 'content': 'It is 42 🚀, naturally.'},
]
_TEXTS = [
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
_MIXED = st.lists(
    st.sampled_from([*'aZé9٣½日🚀.,\'" \t\n\r\u00a0\u3000', "'ll", '  ', 'The', ' of'])
    | st.text(max_size=3),
    max_size=12,
).map(''.join)
_ANY_TEXT = st.text(max_size=20) | _MIXED


# --- SmolLM2, a real file -----------------------------------------------------


@pytest.fixture(scope='module')
def smollm2(smollm2_tokenizer) -> transformers.PreTrainedTokenizerFast:
    return smollm2_tokenizer


@pytest.fixture(scope='module')
def smollm2_ids(smollm2_base):
    """Reference ids: transformers' conversion, and the digit rule apart from it.

    AutoTokenizer.from_pretrained(dir, gguf_file=name) builds this same tokenizer
    (after 10 s in the config). It is GPT-2's, and wrong for SmolLM2: it drops the
    splitting off of single digits. llama.cpp's `smollm` first cuts out every
    `\\p{N}` and then applies GPT-2's pattern to each piece, as the original
    tokenizer.json does with Digits(individual_digits) before ByteLevel. So what
    lies between numerals must equal GPT-2's ids, piece by piece. The two differ
    where blanks precede a numeral: "  1" is 2 tokens, not 3.
    """
    path = smollm2_base.reader.path
    converted = transformers.PreTrainedTokenizerFast.from_pretrained(
        str(path.parent), gguf_file=path.name
    )

    def ids(text: str) -> list[int]:
        pieces = ['']
        for character in text:
            if character.isnumeric():
                pieces += [character, '']
            else:
                pieces[-1] += character
        return [i for piece in pieces for i in converted.encode(piece)]

    return ids


@pytest.mark.parametrize('text', _TEXTS)
def test_smollm2_ids_equal_the_reference(smollm2, smollm2_ids, text):
    assert smollm2.encode(text) == smollm2_ids(text)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(text=_ANY_TEXT)
def test_smollm2_ids_equal_the_reference_on_any_text(smollm2, smollm2_ids, text):
    assert smollm2.encode(text) == smollm2_ids(text)


def test_smollm2_ids_equal_those_of_llama_cpp(smollm2):
    # From the tokenize endpoint of a llama.cpp server with this file, which gave
    # our ids on 3,283 random texts as well.
    assert smollm2.encode('Hello world! 123') == [19556, 905, 17, 216, 33, 34, 35]
    assert smollm2.encode('  12') == [256, 33, 34]
    assert smollm2.encode('a  1 b') == [81, 256, 33, 278]
    assert smollm2.encode('\n\n 5') == [8866, 37]
    assert smollm2.encode('x1²½') == [104, 33, 19133, 16738]
    assert smollm2.encode('Café déjà vu.') == [
        *(51, 1939, 2756, 32564, 90, 16739, 386, 101, 30)
    ]


def test_smollm2_splits_every_digit(smollm2):
    vocab = smollm2.get_vocab()
    digits = '3141592653589793'
    assert smollm2.encode(digits) == [vocab[digit] for digit in digits]


def test_smollm2_renders_and_encodes_its_chat_template(smollm2, smollm2_ids):
    text = smollm2.apply_chat_template(_CONVERSATION, tokenize=False)
    assert text == ''.join(
        f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n' for m in _CONVERSATION
    )
    ids = smollm2.encode(text)
    assert ids == smollm2_ids(text)
    assert ids.count(1) == ids.count(2) == 3
    assert smollm2.decode(ids) == text
    bare = smollm2.decode(ids, skip_special_tokens=True)
    assert bare == text.replace('<|im_start|>', '').replace('<|im_end|>', '')


def test_smollm2_settings(smollm2):
    named = {'bos': 1, 'eos': 2, 'unk': 0, 'pad': 2}
    for name, index in named.items():
        assert getattr(smollm2, f'{name}_token_id') == index
    assert len(smollm2) == 49152
    assert smollm2.model_max_length == 8192
    assert smollm2.padding_side == 'right'
    assert smollm2.clean_up_tokenization_spaces is False
    assert smollm2.model_input_names == ['input_ids', 'attention_mask']
    added = smollm2.added_tokens_decoder
    assert sorted(added) == list(range(17))
    assert all(token.special for token in added.values())


# The bytes that SmolLM2's own vocabulary has no token for: control characters,
# the unassigned planes 4 to 11, and those that UTF-8 never uses.
_LOST_BYTES = frozenset([4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2])


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(text=_ANY_TEXT)
def test_smollm2_round_trip(smollm2, text):
    hypothesis.assume(_LOST_BYTES.isdisjoint(text.encode()))
    assert smollm2.decode(smollm2.encode(text)) == text


def test_smollm2_vocabulary_lacks_some_bytes(smollm2):
    spelled = bytes(range(128)).decode() + '\U00040000\U00080000'
    for character in spelled:
        lost = not _LOST_BYTES.isdisjoint(character.encode())
        assert (smollm2.decode(smollm2.encode(character)) != character) == lost


# --- Synthetic vocabularies of every family -----------------------------------

_GPT2_BYTES = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
}


def _split(pattern: str) -> dict[str, Any]:
    split = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
    return {
        'type': 'Sequence',
        'pretokenizers': [
            {**split, 'pattern': {'Regex': pattern}},
            {**_GPT2_BYTES, 'use_regex': False},
        ],
    }


# What the tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen 2 say, in their words.
_FAMILIES: dict[str, dict[str, Any]] = {
    'gpt-2': {'pre_tokenizer': _GPT2_BYTES},
    'smollm': {
        'pre_tokenizer': {
            'type': 'Sequence',
            'pretokenizers': [
                {'type': 'Digits', 'individual_digits': True},
                _GPT2_BYTES,
            ],
        }
    },
    'llama-bpe': {
        'pre_tokenizer': _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?"
            r'[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
        ),
        'ignore_merges': True,
    },
    'qwen2': {
        'normalizer': {'type': 'NFC'},
        'pre_tokenizer': _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?"
            r'[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
        ),
    },
}
_CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
_USER_DEFINED = ['<think>', '</think>']
# Merges that betray the splitting: SmolLM and Qwen part digits, GPT-2 and SmolLM
# keep "DQ" of "'DQ" whole, Llama 3 and Qwen cut it after the D.
_PROBES = [('1', '2'), ('D', 'Q')]
_UNSEEN = ["x'DQ 1212", ' Nabuchodonosor <think>12</think>']
_UNUSED = ['[PAD900]', '[PAD901]']
_TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}'
)


def _assembled(pre: str, model: dict[str, Any], added: list[dict[str, Any]]):
    family = dict(_FAMILIES[pre])
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
                'decoder': _GPT2_BYTES,
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


def _trained(pre: str) -> dict[str, Any]:
    """Vocabulary and merges learned from `_TEXTS` under a family's splitting."""
    learner = _assembled(pre, {'vocab': {}, 'merges': []}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Control tokens are no text to learn merges from.
    learner.train_from_iterator([t for t in _TEXTS if '<|' not in t] * 3, trainer)
    model = json.loads(learner.to_str())['model']
    return {'vocab': model['vocab'], 'merges': model['merges']}


def _reference(pre: str) -> tokenizers.Tokenizer:
    model = _trained(pre)
    for left, right in _PROBES:
        if left + right not in model['vocab']:
            model['vocab'][left + right] = len(model['vocab'])
            model['merges'].append([left, right])
    # A word that no merge leads to: found with ignore_merges only.
    model['vocab']['ĠNabuchodonosor'] = len(model['vocab'])
    added = []
    for token in _CONTROL + _USER_DEFINED:
        index = len(model['vocab'])
        model['vocab'][token] = index
        flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
        added.append(
            {'id': index, 'content': token, 'special': token in _CONTROL, **flags}
        )
    return _assembled(pre, model, added)


def _write(path: pathlib.Path, pre: str, metadata: dict[str, Any]) -> pathlib.Path:
    """A GGUF of a 1-layer model around the family's synthetic vocabulary.

    `metadata` replaces keys or, None, drops them; a function gets the size.
    """
    arch = 'qwen2' if pre == 'qwen2' else 'llama'
    model = json.loads(_reference(pre).to_str())['model']
    tokens = [*sorted(model['vocab'], key=model['vocab'].__getitem__), *_UNUSED]
    kinds = dict.fromkeys(_CONTROL, _Kind.CONTROL)
    kinds |= dict.fromkeys(_USER_DEFINED, _Kind.USER_DEFINED)
    kinds |= dict.fromkeys(_UNUSED, _Kind.UNUSED)
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
            int(kinds.get(token, _Kind.NORMAL)) for token in tokens
        ],
        'tokenizer.ggml.merges': [' '.join(pair) for pair in model['merges']],
        'tokenizer.ggml.bos_token_id': tokens.index('<|endoftext|>'),
        'tokenizer.ggml.eos_token_id': tokens.index('<|im_end|>'),
        'tokenizer.chat_template': _TEMPLATE,
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


@pytest.fixture(params=_FAMILIES)
def pre(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(path, tokenizer, reference) of each family, made once."""
    folder = tmp_path_factory.mktemp('families')
    families = {}
    for name in _FAMILIES:
        path = _write(folder / f'{name}.gguf', name, {})
        reader = gguf_reader.GgufReader(path)
        tokenizer = gguf_tokenizer.tokenizer_from_gguf(reader)
        families[name] = (path, tokenizer, _reference(name))
    return families


@pytest.mark.parametrize('text', [*_TEXTS, *_UNSEEN])
def test_ids_equal_the_original_tokenizers(made, pre, text):
    _, tokenizer, reference = made[pre]
    assert tokenizer.encode(text, add_special_tokens=False) == (
        reference.encode(text, add_special_tokens=False).ids
    )


def test_ids_equal_the_original_tokenizers_on_any_text(made, pre):
    _, tokenizer, reference = made[pre]

    @hypothesis.settings(deadline=None, max_examples=150)
    @hypothesis.given(text=_ANY_TEXT)
    def check(text):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, add_special_tokens=False).ids

    check()


def test_families_differ_where_they_should(made):
    def pieces(pre: str, text: str) -> list[str]:
        tokenizer = made[pre][1]
        ids = tokenizer.encode(text, add_special_tokens=False)
        return [tokenizer.decode([i]) for i in ids]

    # Digits: as many as come, three, or one at a time; blanks go with them or not.
    assert pieces('smollm', '  1') == ['  ', '1']
    assert pieces('gpt-2', '  1') == [' ', ' 1']
    for pre in ('qwen2', 'smollm'):
        assert pieces(pre, '12') == ['1', '2']
    for pre in ('llama-bpe', 'gpt-2'):
        assert pieces(pre, '12') == ['12']
    assert pieces('gpt-2', '3312') == ['3', '3', '12']
    assert pieces('llama-bpe', '3312') == ['3', '3', '1', '2']
    # Contractions: in either case, or small letters only.
    for pre in ('llama-bpe', 'qwen2'):
        assert pieces(pre, "'DQ")[-1] == 'Q'
    for pre in ('gpt-2', 'smollm'):
        assert pieces(pre, "'DQ") == ["'", 'DQ']
    # Words: whole where merges are ignored.
    word = ' Nabuchodonosor'
    assert pieces('llama-bpe', word) == [word]
    assert len(pieces('qwen2', word)) > 1
    # Normalisation: composed in Qwen, as given elsewhere.
    assert made['qwen2'][1].encode('e\u0301') == made['qwen2'][1].encode('é')
    assert made['smollm'][1].encode('e\u0301') != made['smollm'][1].encode('é')


def test_round_trip(made, pre):
    tokenizer = made[pre][1]

    @hypothesis.settings(deadline=None, max_examples=150)
    @hypothesis.given(text=_ANY_TEXT)
    def check(text):
        want = unicodedata.normalize('NFC', text) if pre == 'qwen2' else text
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == want

    check()


def test_offsets_point_at_the_text_with_its_blanks(made, pre):
    text = 'Hello  world 12\n of'
    encoded = made[pre][1](text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [0, *(end for _, end in encoded['offset_mapping'])]
    assert [start for start, _ in encoded['offset_mapping']] == ends[:-1]
    assert ends[-1] == len(text)


def test_control_tokens_are_special_and_user_defined_ones_are_text(made, pre):
    tokenizer = made[pre][1]
    text = '<|im_start|>a<think>b</think><|im_end|>'
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'a<think>b</think>'
    for token in _CONTROL + _USER_DEFINED:
        (index,) = tokenizer.encode(token, add_special_tokens=False)
        added = tokenizer.added_tokens_decoder[index]
        assert added.special == (token in _CONTROL)
    assert tokenizer.bos_token == '<|endoftext|>'
    assert tokenizer.eos_token == '<|im_end|>'
    assert tokenizer.unk_token is None and tokenizer.pad_token is None


def test_unused_tokens_are_no_vocabulary(made, pre):
    path, tokenizer, reference = made[pre]
    rows = gguf_reader.GgufReader(path).hf_config['vocab_size']
    assert len(tokenizer) == reference.get_vocab_size() == rows - len(_UNUSED)
    assert len(tokenizer.encode('[PAD900]', add_special_tokens=False)) > 1


def test_bos_is_llama_3s_default(made, pre):
    tokenizer = made[pre][1]
    bare = tokenizer.encode('of the', add_special_tokens=False)
    assert tokenizer.bos_token_id not in bare
    start = [tokenizer.bos_token_id] if pre == 'llama-bpe' else []
    assert tokenizer.encode('of the') == start + bare
    assert tokenizer.encode('of', ' the') == start + tokenizer.encode(
        'of', add_special_tokens=False
    ) + start + tokenizer.encode(' the', add_special_tokens=False)


@pytest.mark.parametrize('pre', ['llama-bpe', 'smollm'])
@pytest.mark.parametrize('bos', [False, True])
@pytest.mark.parametrize('eos', [False, True])
def test_bos_and_eos_are_added_as_the_file_says(tmp_path, pre, bos, eos):
    flags = {
        'tokenizer.ggml.add_bos_token': bos,
        'tokenizer.ggml.add_eos_token': eos,
    }
    tokenizer = gguf_tokenizer.tokenizer_from_gguf(
        _write(tmp_path / 'm.gguf', pre, flags)
    )
    bare = tokenizer.encode('of the', add_special_tokens=False)
    assert tokenizer.encode('of the') == (
        [tokenizer.bos_token_id] * bos + bare + [tokenizer.eos_token_id] * eos
    )


@pytest.mark.parametrize(
    ('alias', 'pre'),
    [('llama3', 'llama-bpe'), ('llama-v3', 'llama-bpe')],
)
def test_aliases(made, tmp_path, alias, pre):
    metadata = {'tokenizer.ggml.pre': alias}
    path = _write(tmp_path / 'm.gguf', pre, metadata)
    tokenizer = gguf_tokenizer.tokenizer_from_gguf(path)
    for text in _TEXTS:
        assert tokenizer.encode(text) == made[pre][1].encode(text)


@pytest.mark.parametrize('with_config', [False, True])
def test_saved_tokenizer_reloads_the_same(made, tmp_path, pre, with_config):
    path, tokenizer, _ = made[pre]
    tokenizer.save_pretrained(tmp_path)
    if with_config:
        # AutoTokenizer then goes by model_type, and picks Qwen2Tokenizer for qwen2.
        config = gguf_reader.GgufReader(path).hf_config
        (tmp_path / 'config.json').write_text(json.dumps(config))
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*_TEXTS, *_UNSEEN]:
        assert again.encode(text) == tokenizer.encode(text)
        bare = again.encode(text, add_special_tokens=False)
        assert bare == tokenizer.encode(text, add_special_tokens=False)
        assert again.decode(bare) == tokenizer.decode(bare)
    assert again.chat_template == tokenizer.chat_template == _TEMPLATE
    assert (
        again.apply_chat_template(_CONVERSATION, tokenize=True)['input_ids']
        == (tokenizer.apply_chat_template(_CONVERSATION, tokenize=True)['input_ids'])
    )
    assert again.model_max_length == tokenizer.model_max_length == 321
    assert again.padding_side == tokenizer.padding_side == 'right'
    assert again.model_input_names == tokenizer.model_input_names
    assert again.bos_token_id == tokenizer.bos_token_id
    assert again.eos_token_id == tokenizer.eos_token_id
    assert len(again) == len(tokenizer)


def test_no_chat_template_is_none(tmp_path):
    path = _write(tmp_path / 'm.gguf', 'gpt-2', {'tokenizer.chat_template': None})
    assert gguf_tokenizer.tokenizer_from_gguf(path).chat_template is None


def test_torch_is_not_needed(made):
    path, tokenizer, _ = made['llama-bpe']
    program = (
        'import sys\n'
        'sys.modules["torch"] = None  # Importing it raises from here on.\n'
        'from ppjax.models import gguf_tokenizer\n'
        f't = gguf_tokenizer.tokenizer_from_gguf({str(path)!r})\n'
        f'print(t.encode({_TEXTS[9]!r}))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=pathlib.Path(gguf_tokenizer.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tokenizer.encode(_TEXTS[9])


@pytest.mark.parametrize(
    ('metadata', 'parts'),
    [
        ({'tokenizer.ggml.model': 'llama'}, ["'llama'", 'gpt2']),
        ({'tokenizer.ggml.model': None}, ['None', 'gpt2']),
        ({'tokenizer.ggml.pre': 'tekken'}, ["'tekken'", 'smollm']),
        ({'tokenizer.ggml.pre': None}, ['None', 'tokenizer.ggml.pre']),
        ({'tokenizer.ggml.tokens': None}, ['tokenizer.ggml.tokens']),
        ({'tokenizer.ggml.tokens': [1, 2]}, ['tokenizer.ggml.tokens']),
        ({'tokenizer.ggml.tokens': lambda size: ['a'] * size}, ['a token twice']),
        ({'tokenizer.ggml.token_type': None}, ['tokenizer.ggml.token_type']),
        ({'tokenizer.ggml.token_type': [1]}, ['tokenizer.ggml.token_type']),
        ({'tokenizer.ggml.token_type': lambda size: [17] * size}, ['types [17]']),
        ({'tokenizer.ggml.merges': None}, ['tokenizer.ggml.merges']),
        ({'tokenizer.ggml.merges': ['a NoToken']}, ["'a NoToken'"]),
        ({'tokenizer.ggml.merges': ['ab']}, ["'ab'"]),
        ({'tokenizer.ggml.eos_token_id': 999}, ['999', 'eos_token_id']),
        (
            {
                'tokenizer.ggml.add_bos_token': True,
                'tokenizer.ggml.bos_token_id': None,
            },
            ['wants BOS', 'bos_token_id'],
        ),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, metadata, parts):
    path = _write(tmp_path / 'm.gguf', 'gpt-2', metadata)
    with pytest.raises(errors.InputError) as caught:
        gguf_tokenizer.tokenizer_from_gguf(path)
    message = str(caught.value)
    assert '\n' not in message
    for part in (str(path), *parts):
        assert part in message


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    tokens = [f't{i}' for i in range(5000)]
    metadata = {
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': [1] * len(tokens),
    }
    path = _write(tmp_path / 'm.gguf', 'gpt-2', metadata)
    with pytest.raises(errors.InputError, match='lists 5000 tokens but embeds'):
        gguf_tokenizer.tokenizer_from_gguf(path)

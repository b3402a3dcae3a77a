"""GGUF tokenizers against Hugging Face's and llama.cpp's ids."""

import json
import pathlib
import subprocess
import sys
import unicodedata

import hypothesis
import pytest
import transformers

from ppjax.base import errors
from ppjax.models import gguf_reader, gguf_tokenizer
from tests.models import gguf_tokenizers


def _tokenizer(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
    return gguf_tokenizer.tokenizer_from_gguf(gguf_reader.GgufReader(path))


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


@pytest.mark.parametrize('text', gguf_tokenizers.TEXTS)
def test_smollm2_ids_equal_the_reference(smollm2, smollm2_ids, text):
    assert smollm2.encode(text) == smollm2_ids(text)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(text=gguf_tokenizers.ANY_TEXT)
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
    text = smollm2.apply_chat_template(gguf_tokenizers.CONVERSATION, tokenize=False)
    assert text == ''.join(
        f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n'
        for m in gguf_tokenizers.CONVERSATION
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
@hypothesis.given(text=gguf_tokenizers.ANY_TEXT)
def test_smollm2_round_trip(smollm2, text):
    hypothesis.assume(_LOST_BYTES.isdisjoint(text.encode()))
    assert smollm2.decode(smollm2.encode(text)) == text


def test_smollm2_vocabulary_lacks_some_bytes(smollm2):
    spelled = bytes(range(128)).decode() + '\U00040000\U00080000'
    for character in spelled:
        lost = not _LOST_BYTES.isdisjoint(character.encode())
        assert (smollm2.decode(smollm2.encode(character)) != character) == lost


@pytest.fixture(params=gguf_tokenizers.FAMILIES)
def pre(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(path, tokenizer, reference) of each family, made once."""
    folder = tmp_path_factory.mktemp('families')
    families = {}
    for name in gguf_tokenizers.FAMILIES:
        path = gguf_tokenizers.write(folder / f'{name}.gguf', name, {})
        reader = gguf_reader.GgufReader(path)
        tokenizer = gguf_tokenizer.tokenizer_from_gguf(reader)
        families[name] = (path, tokenizer, gguf_tokenizers.reference(name))
    return families


@pytest.mark.parametrize('text', [*gguf_tokenizers.TEXTS, *gguf_tokenizers.UNSEEN])
def test_ids_equal_the_original_tokenizers(made, pre, text):
    _, tokenizer, reference = made[pre]
    assert tokenizer.encode(text, add_special_tokens=False) == (
        reference.encode(text, add_special_tokens=False).ids
    )


def test_ids_equal_the_original_tokenizers_on_any_text(made, pre):
    _, tokenizer, reference = made[pre]

    @hypothesis.settings(deadline=None, max_examples=150)
    @hypothesis.given(text=gguf_tokenizers.ANY_TEXT)
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
    @hypothesis.given(text=gguf_tokenizers.ANY_TEXT)
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
    for token in gguf_tokenizers.CONTROL + gguf_tokenizers.USER_DEFINED:
        (index,) = tokenizer.encode(token, add_special_tokens=False)
        added = tokenizer.added_tokens_decoder[index]
        assert added.special == (token in gguf_tokenizers.CONTROL)
    assert tokenizer.bos_token == '<|endoftext|>'
    assert tokenizer.eos_token == '<|im_end|>'
    assert tokenizer.unk_token is None and tokenizer.pad_token is None


def test_unused_tokens_are_no_vocabulary(made, pre):
    path, tokenizer, reference = made[pre]
    rows = gguf_reader.GgufReader(path).hf_config['vocab_size']
    assert (
        len(tokenizer)
        == reference.get_vocab_size()
        == rows - len(gguf_tokenizers.UNUSED)
    )
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
    tokenizer = _tokenizer(gguf_tokenizers.write(tmp_path / 'm.gguf', pre, flags))
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
    path = gguf_tokenizers.write(tmp_path / 'm.gguf', pre, metadata)
    tokenizer = _tokenizer(path)
    for text in gguf_tokenizers.TEXTS:
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
    for text in [*gguf_tokenizers.TEXTS, *gguf_tokenizers.UNSEEN]:
        assert again.encode(text) == tokenizer.encode(text)
        bare = again.encode(text, add_special_tokens=False)
        assert bare == tokenizer.encode(text, add_special_tokens=False)
        assert again.decode(bare) == tokenizer.decode(bare)
    assert again.chat_template == tokenizer.chat_template == gguf_tokenizers.TEMPLATE
    assert (
        again.apply_chat_template(gguf_tokenizers.CONVERSATION, tokenize=True)[
            'input_ids'
        ]
        == (
            tokenizer.apply_chat_template(gguf_tokenizers.CONVERSATION, tokenize=True)[
                'input_ids'
            ]
        )
    )
    assert again.model_max_length == tokenizer.model_max_length == 321
    assert again.padding_side == tokenizer.padding_side == 'right'
    assert again.model_input_names == tokenizer.model_input_names
    assert again.bos_token_id == tokenizer.bos_token_id
    assert again.eos_token_id == tokenizer.eos_token_id
    assert len(again) == len(tokenizer)


def test_no_chat_template_is_none(tmp_path):
    path = gguf_tokenizers.write(
        tmp_path / 'm.gguf', 'gpt-2', {'tokenizer.chat_template': None}
    )
    assert _tokenizer(path).chat_template is None


def test_torch_is_not_needed(made):
    path, tokenizer, _ = made['llama-bpe']
    program = (
        'import sys\n'
        'sys.modules["torch"] = None  # Importing it raises from here on.\n'
        'from ppjax.models import gguf_reader, gguf_tokenizer\n'
        f'reader = gguf_reader.GgufReader({str(path)!r})\n'
        't = gguf_tokenizer.tokenizer_from_gguf(reader)\n'
        f'print(t.encode({gguf_tokenizers.TEXTS[9]!r}))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=pathlib.Path(gguf_tokenizer.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == tokenizer.encode(gguf_tokenizers.TEXTS[9])


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
    path = gguf_tokenizers.write(tmp_path / 'm.gguf', 'gpt-2', metadata)
    with pytest.raises(errors.InputError) as caught:
        _tokenizer(path)
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
    path = gguf_tokenizers.write(tmp_path / 'm.gguf', 'gpt-2', metadata)
    with pytest.raises(errors.InputError, match='lists 5000 tokens but embeds'):
        _tokenizer(path)

"""Text that streams token by token is the decoded text."""

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers
from tokenizers import decoders, models
import transformers

from ppjax.chatting import conversation


def _pieces(tokenizer, ids):
    detokenizer = conversation.Detokenizer(tokenizer)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


_TEXTS = (
    'Zoë’s naïve café, año 2024 .',
    '🏴‍☠️ 👩‍👩‍👧 🇫🇷 e\u0301 日本語 한국어 עברית\n\n\tx  y ',
    '',
)


@pytest.mark.parametrize('text', _TEXTS)
def test_streamed_text_is_the_decoded_text(smollm2_tokenizer, text):
    ids = smollm2_tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(smollm2_tokenizer, ids)
    assert ''.join(pieces) == smollm2_tokenizer.decode(ids) == text
    assert not any('\ufffd' in piece for piece in pieces)
    # As soon as they are whole: nothing is left to the end.
    assert pieces[-1] == ''


@hypothesis.given(text=st.text(st.characters(exclude_categories=['Cs'])))
@hypothesis.settings(max_examples=100)
def test_any_text_streams_without_half_characters(smollm2_tokenizer, text):
    ids = smollm2_tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(smollm2_tokenizer, ids)
    whole = smollm2_tokenizer.decode(ids)
    assert ''.join(pieces) == whole
    # SmolLM2 has no tokens for some bytes: then the whole text has half characters.
    if '\ufffd' not in whole:
        assert not any('\ufffd' in piece for piece in pieces)


@hypothesis.given(ids=st.lists(st.integers(0, 700), max_size=40))
@hypothesis.settings(max_examples=100)
def test_any_tokens_stream_to_their_text(smollm2_tokenizer, ids):
    # Low ids are special tokens and single bytes, most of them no characters.
    assert ''.join(_pieces(smollm2_tokenizer, ids)) == smollm2_tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_streams_tokenizers_that_join_words_with_blanks():
    """Llama 2's: ▁ stands for a blank, bytes have tokens, text starts without one."""
    words = ['<unk>', '<s>', '▁ahoy', '▁a', 'b', '▁']
    words += [f'<0x{byte:02X}>' for byte in range(256)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [],
            unk_token='<unk>',
            byte_fallback=True,
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ]
    )
    backend.add_special_tokens(['<s>'])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    first = words.index('<0x00>')
    emoji = [first + byte for byte in '🚢'.encode()]
    ids = [1, 2, 1, 3, 4, *emoji, 5, 2]
    pieces = _pieces(tokenizer, ids)
    assert pieces == ['', 'ahoy', '', ' a', 'b', '', '', '', '🚢', ' ', ' ahoy', '']
    assert ''.join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    cut = ids[:-3]
    assert ''.join(_pieces(tokenizer, cut)) == tokenizer.decode(
        cut, skip_special_tokens=True
    )

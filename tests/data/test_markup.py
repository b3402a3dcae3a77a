"""What is a mark of some chat model, and what only looks like one."""

import pytest
import tokenizers
import transformers

from ppjax.data import markup

_TURN_MARKS = (
    *('<|im_end|>', '<|im_start|>', '<|eot_id|>', '<|start_header_id|>', '<|eom_id|>'),
    *('<|channel|>', '<|message|>', '<|return|>', '<|start|>', '<|end|>', '<|user|>'),
    *('<|assistant|>', '<|END_OF_TURN_TOKEN|>', '<｜User｜>', '<｜end▁of▁sentence｜>'),
    *('<start_of_turn>', '<end_of_turn>', '<turn|>', '<|turn>', '[INST]', '[/INST]'),
    *('<<SYS>>', '[|endofturn|]', '<eos>', '<tool_call>', '<|endoftext|>'),
    *('[TOOL_CALLS]', '<seed:eos>', '<unused94>'),
)

_HARMONY = '<|channel|>analysis<|message|>Hm.<|end|>'


@pytest.mark.parametrize('mark', _TURN_MARKS)
def test_turn_markers_of_every_family(mark):
    assert markup.turn_mark(f'Aye, {mark} so.') == mark
    assert markup.turn_mark(markup.spaced(f'Aye, {mark} so.')) == ''


@pytest.mark.parametrize(
    'text',
    [
        'Use <b>, <s>old</s> new, and </s> or < |im_end|>.',
        'a <| f |> b, x || y, [the ARGS], [x], <table>, <name>, List<int>, 3 < 4 > 2',
        '[1] said the <ferryman>. <3 :-| |> <|',
    ],
)
def test_what_only_looks_like_it(text):
    assert markup.turn_mark(text) == markup.reasoning_mark(text) == ''
    assert markup.spaced(text) == text


@pytest.mark.parametrize('text', ['<s>Aye.', 'Aye.</s>', 'Aye.</s> <s>[INST] And?'])
def test_beginnings_and_ends_of_texts_are_marks_where_they_begin_and_end(text):
    assert markup.turn_mark(text)


@pytest.mark.parametrize(
    'text',
    [
        '<think>Hm.</think>Aye.',
        '<THOUGHT>\nHm.\n</THOUGHT>\n\nAye.',
        'Hm.</thinking> Aye.',
        '[THINK]Hm.[/THINK]Aye.',
        '◁think▷Hm.◁/think▷Aye.',
        f'{_HARMONY}<|start|>assistant<|channel|>final<|message|>Aye.',
        f'<|start|>assistant{_HARMONY}<|channel|>final<|message|>Aye.',
        'analysisThe user wants a ferryman.assistantfinalAye.',
        '<|channel>thought\nHm.<channel|>Aye.',
        '<unused94>thought\nHm.<unused95>Aye.',
    ],
)
def test_reasoning_that_ended_comes_off(text):
    assert markup.without_reasoning(text) == ('Aye.', True)


@pytest.mark.parametrize(
    'text',
    [
        '<think>Hm.',
        '<thought>Hm. Aye.',
        'Aye. <thought>Hm.</thought> So.',
        '[THINK] Hm.',
        '<|channel|>analysis<|message|>Hm.',
    ],
)
def test_reasoning_that_is_no_wrapping_stays_and_is_seen(text):
    assert markup.without_reasoning(text) == (text, False)
    assert markup.reasoning_mark(text)


def test_plain_words_of_reasoning_are_words():
    for text in ('analysis of the tide: six.', 'I think so.', 'Say assistantfinal.'):
        assert markup.without_reasoning(text) == (text, False)
        assert markup.reasoning_mark(text) == ''


@pytest.mark.parametrize(
    'text',
    [
        *('Aye.<|im_end|>', 'Aye.\n<|eot_id|>\n', 'Aye.</s>', 'Aye.<|return|>'),
        *('Aye.<end_of_turn>\n<start_of_turn>user\nAnd?', 'Aye.</s><s>[INST] And?'),
        'Aye.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>',
    ],
)
def test_a_turn_is_cut_where_it_ends(text):
    assert markup.without_turn_end(text) == ('Aye.', True)


@pytest.mark.parametrize(
    'text',
    ['Write <|im_end|> to end.', '<|im_start|>Aye.', '<|im_end|>', 'Aye. [INST] So.'],
)
def test_marks_that_end_nothing_are_not_cut_at(text):
    assert markup.without_turn_end(text) == (text, False)


# --- A tokenizer's own --------------------------------------------------------


@pytest.fixture
def marks() -> markup.OwnMarks:
    """Special, added and normalised tokens beside blanks and HTML, as models have."""
    words = {'[UNK]': 0, 'aye': 1, '<': 2, '>': 3, 'think': 4, '|': 5}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, '[UNK]'))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(['[UNK]', '<|im_end|>'])
    backend.add_tokens(
        [
            tokenizers.AddedToken('<think>', normalized=True),
            tokenizers.AddedToken('<｜User｜>', normalized=False),
            *('   ', '\n\n', '<table>', '</strong>'),
        ]
    )
    return markup.OwnMarks(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token='[UNK]', eos_token='<|im_end|>'
        )
    )


@pytest.mark.parametrize(
    ('text', 'mark'),
    [
        ('aye<|im_end|>', '<|im_end|>'),
        ('aye <think> aye', '<think>'),
        ('aye <THINK> aye', '<think>'),
        ('aye ＜think＞ aye', '<think>'),
        ('aye <｜User｜>', '<｜User｜>'),
        ('aye [UNK]', '[UNK]'),
        ('< what > is unknown [', ''),
        ('<table>\n\n   </strong> < think >', ''),
        ('aye', ''),
    ],
)
def test_what_a_tokenizer_takes_for_a_mark(marks, text, mark):
    assert marks.first(text) == mark
    if mark not in ('', '[UNK]') and mark in text:
        assert marks.first(marks.spaced(text)) == ''


def test_a_models_own_reasoning_may_stand_in_its_earlier_answers(marks):
    assert marks.first('<think>aye', special_only=True) == ''
    assert marks.first('<|im_end|>aye', special_only=True) == '<|im_end|>'

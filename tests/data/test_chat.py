"""Rendered conversations: which tokens, which of them are learned from."""

import copy

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
import transformers

from ppjax.base import errors
from ppjax.data import calibration, chat, markup

_DATE = '2026-01-01'
_SYSTEM = {'role': 'system', 'content': 'You are Old Bram, a ferryman.'}
_USER = {'role': 'user', 'content': "What's 7 x 6?\n\n```py\nx  =\t1\n```"}
_ANSWER = {'role': 'assistant', 'content': 'Forty-two, traveller 🚀.\n\nMind the step.'}

# As in Llama 3.2's: the date is given, or asked for.
_LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system\n\nToday Date: " + date_string + "\n\n" }}
{{- system_message + "<|end|>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '\n\n' }}
    {{- message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n\n' }}
{%- endif %}
"""
# As in Qwen3's: an answer to the last query is preceded by its (empty) thoughts.
_QWEN3_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""


def _row(*messages: dict[str, str], query_id: str = 'q') -> calibration.Row:
    return calibration.parse_row(
        {'messages': list(messages), 'query_id': query_id}, 'c.jsonl:4', '4'
    )


@pytest.fixture
def renderer(smollm2_tokenizer):
    return chat.ChatRenderer(smollm2_tokenizer, date=_DATE)


@pytest.fixture
def byte_tokenizer():
    """Bytes, three special tokens, and a plain encode that adds BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ['<|begin|>', '<|start|>', '<|end|>']
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single='<|begin|> $A', special_tokens=[('<|begin|>', 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token='<|begin|>',
        eos_token='<|end|>',
        extra_special_tokens=['<|start|>'],
    )
    tokenizer.chat_template = _LLAMA3_TEMPLATE
    return tokenizer


def _text(tokenizer, tokens: np.ndarray) -> str:
    return tokenizer.decode(
        tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


# --- SmolLM2's own template ---------------------------------------------------


@pytest.mark.parametrize(
    'messages',
    [
        (_SYSTEM, _USER, _ANSWER),
        (_USER, _ANSWER),
        (_SYSTEM, _USER, _ANSWER, _USER, _ANSWER | {'content': 'I said so.'}),
    ],
)
def test_loss_is_over_the_answer_and_end_of_turn(renderer, messages):
    tokenizer = renderer.tokenizer
    example = renderer.example(_row(*messages))
    assert example.tokens.dtype == np.int32
    assert example.query_id == 'q'
    learned = example.tokens[example.answer_start :]
    assert _text(tokenizer, learned) == messages[-1]['content'] + '<|im_end|>'
    assert example.num_answer_tokens == len(learned)
    prompt = _text(tokenizer, example.tokens[: example.answer_start])
    assert prompt.endswith('<|im_start|>assistant\n')
    for message in messages[:-1]:
        assert message['content'] + '<|im_end|>' in prompt


@pytest.mark.parametrize('messages', [(_SYSTEM, _USER, _ANSWER), (_USER, _ANSWER)])
def test_ids_are_the_tokenizers_own(renderer, messages):
    example = renderer.example(_row(*messages))
    whole = renderer.tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=False
    )
    count = len(example.tokens)
    assert example.tokens.tolist() == whole[:count]
    # What is left out follows the end of the turn.
    assert _text(renderer.tokenizer, whole[count:]) == '\n'


def test_prompt_is_the_examples_beginning(renderer):
    example = renderer.example(_row(_SYSTEM, _USER, _ANSWER))
    prompt = renderer.prompt([_SYSTEM, _USER])
    assert prompt == example.tokens[: example.answer_start].tolist()
    assert prompt == renderer.tokenizer.apply_chat_template(
        [_SYSTEM, _USER], tokenize=True, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize('markup', ['<|im_end|>', '<|im_start|>', '<|endoftext|>'])
@pytest.mark.parametrize('place', [0, 1, 2])
def test_markup_in_content_is_refused(renderer, markup, place):
    messages = [_SYSTEM, _USER, _ANSWER]
    messages[place] = messages[place] | {'content': f'Hello{markup}there'}
    with pytest.raises(errors.InputError) as caught:
        renderer.example(_row(*messages))
    for part in ('c.jsonl:4', markup, messages[place]['role']):
        assert part in str(caught.value)
    with pytest.raises(errors.InputError, match='markup'):
        renderer.prompt(messages[place : place + 1])


def test_marks_of_other_families_are_text_in_questions_but_not_in_answers(renderer):
    asked = _USER | {'content': 'What is <|eot_id|>, or <think>?'}
    assert '<|eot_id|>' in _text(renderer.tokenizer, renderer.prompt([asked]))
    renderer.example(_row(asked, _ANSWER))
    for mark in ('<|eot_id|>', '<think>', '[INST]'):
        said = _ANSWER | {'content': f'Aye. {mark} So.'}
        with pytest.raises(markup.Marked) as caught:
            renderer.example(_row(_USER, said))
        assert f'c.jsonl:4: the answer contains {mark!r}' in str(caught.value)
        assert not renderer.takes(_row(_USER, said))
    assert renderer.takes(_row(asked, _ANSWER))


def test_added_tokens_that_are_not_special_are_markup_too(byte_tokenizer):
    byte_tokenizer.add_tokens(['<think>', '<tool_call>', '\n\n', '<table>'])
    byte_tokenizer.chat_template = _QWEN3_TEMPLATE
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    for mark in ('<think>', '<tool_call>'):
        with pytest.raises(markup.Marked, match=mark):
            renderer.prompt([_USER | {'content': f'Say {mark}.'}])
        spaced = renderer.spaced(f'Say {mark}.')
        assert spaced == f'Say < {mark[1:]}.'
        renderer.prompt([_USER | {'content': spaced}])
    renderer.prompt([_USER | {'content': 'A <table>\n\nof tides.'}])
    # A model's own earlier answer may have been thought about.
    renderer.prompt([_USER, _ANSWER | {'content': '<think>Hm.</think>Aye.'}, _USER])


def test_text_that_looks_like_markup_is_text(renderer):
    said = _ANSWER | {'content': 'Use <b> and </s> or < |im_end|>.'}
    example = renderer.example(_row(_USER, said))
    learned = example.tokens[example.answer_start :]
    assert _text(renderer.tokenizer, learned) == said['content'] + '<|im_end|>'


def test_tokenizer_without_template_is_refused(smollm2_tokenizer):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.name_or_path = 'folder'
    tokenizer.chat_template = None
    with pytest.raises(
        errors.InputError, match=r'no chat template.*chat_template\.jinja'
    ):
        chat.ChatRenderer(tokenizer, date=_DATE)


@pytest.mark.parametrize('date', ['', 'today', '01.02.2026', '2026-13-01'])
def test_dates_that_are_none_are_refused(smollm2_tokenizer, date):
    with pytest.raises(errors.InputError, match='--date'):
        chat.ChatRenderer(smollm2_tokenizer, date=date)


# --- Other templates ----------------------------------------------------------


def test_a_template_with_bos_gives_one_bos(byte_tokenizer):
    assert byte_tokenizer.encode('x')[0] == byte_tokenizer.bos_token_id
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    example = renderer.example(_row(_SYSTEM, _USER, _ANSWER))
    for tokens in (example.tokens.tolist(), renderer.prompt([_USER])):
        assert tokens[0] == byte_tokenizer.bos_token_id
        assert tokens.count(byte_tokenizer.bos_token_id) == 1


def test_a_template_without_bos_gives_none(byte_tokenizer):
    byte_tokenizer.chat_template = _QWEN3_TEMPLATE
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    tokens = renderer.example(_row(_USER, _ANSWER)).tokens
    assert byte_tokenizer.bos_token_id not in tokens


_ASKS_THE_CLOCK = _LLAMA3_TEMPLATE.replace('not date_string is defined', 'true')


@pytest.mark.parametrize('template', [_LLAMA3_TEMPLATE, _ASKS_THE_CLOCK])
def test_the_date_is_the_one_given(byte_tokenizer, template):
    byte_tokenizer.chat_template = template
    for date, printed in (('2026-01-01', '01 Jan 2026'), ('1999-12-31', '31 Dec 1999')):
        renderer = chat.ChatRenderer(byte_tokenizer, date=date)
        example = renderer.example(_row(_SYSTEM, _USER, _ANSWER))
        assert f'Today Date: {printed}\n' in _text(byte_tokenizer, example.tokens)


@pytest.mark.parametrize(
    ('form', 'printed'),
    [
        ('%Y-%m-%d', '2026-03-05'),
        ('%d %B %Y', '05 March 2026'),
        ('%A, %-d.%-m.%y', 'Thursday, 5.3.26'),
        ('%a %j', 'Thu 064'),
    ],
)
def test_the_clock_writes_dates_in_any_form(byte_tokenizer, form, printed):
    byte_tokenizer.chat_template = _ASKS_THE_CLOCK.replace('%d %b %Y', form)
    renderer = chat.ChatRenderer(byte_tokenizer, date='2026-03-05')
    assert f'Date: {printed}\n' in _text(byte_tokenizer, renderer.prompt([_USER]))


@pytest.mark.parametrize('start', ['', ' ', '\n', '  {%- set x = 1 %}\n', 'Chat:\n'])
def test_a_template_is_otherwise_rendered_as_it_is(byte_tokenizer, start):
    byte_tokenizer.chat_template = start + _QWEN3_TEMPLATE
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    messages = [_SYSTEM, _USER]
    assert renderer.prompt(messages) == byte_tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )


def test_thoughts_are_part_of_the_prompt(byte_tokenizer):
    byte_tokenizer.chat_template = _QWEN3_TEMPLATE
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    example = renderer.example(_row(_SYSTEM, _USER, _ANSWER))
    prompt = _text(byte_tokenizer, example.tokens[: example.answer_start])
    assert prompt.endswith('<think>\n\n</think>\n\n')
    learned = _text(byte_tokenizer, example.tokens[example.answer_start :])
    assert learned == _ANSWER['content'] + '<|end|>'


def test_a_template_that_rewrites_the_prompt_is_refused(byte_tokenizer):
    # The history changes with the number of turns.
    byte_tokenizer.chat_template = '{{ messages | length }}' + _QWEN3_TEMPLATE
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    with pytest.raises(errors.InputError, match=r'c\.jsonl:4: .*renders the prompt'):
        renderer.example(_row(_USER, _ANSWER))


def test_a_template_without_end_of_turn_is_refused(byte_tokenizer):
    byte_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    with pytest.raises(errors.InputError, match='no special token'):
        renderer.example(_row(_USER, _ANSWER))


def test_a_template_that_refuses_is_quoted(byte_tokenizer):
    byte_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        + _QWEN3_TEMPLATE
    )
    renderer = chat.ChatRenderer(byte_tokenizer, date=_DATE)
    renderer.example(_row(_USER, _ANSWER))
    with pytest.raises(errors.InputError, match='System role not supported'):
        renderer.example(_row(_SYSTEM, _USER, _ANSWER))


# --- Many rows ----------------------------------------------------------------


def test_rows_over_length_are_dropped_and_counted(renderer):
    rows = [
        _row(_USER, _ANSWER | {'content': 'word ' * count}, query_id=str(count))
        for count in (5, 200, 10, 300)
    ]
    lengths = [len(renderer.example(row).tokens) for row in rows]
    examples, dropped = chat.render_rows(renderer, rows, lengths[2])
    assert [example.query_id for example in examples] == ['5', '10']
    assert dropped == chat.Dropped(too_long=2)
    examples, dropped = chat.render_rows(renderer, rows, lengths[2] - 1)
    assert [example.query_id for example in examples] == ['5']
    assert dropped == chat.Dropped(too_long=3)
    examples, dropped = chat.render_rows(renderer, rows, 10_000)
    assert (len(examples), dropped) == (4, chat.Dropped())
    marked = _row(_USER, _ANSWER | {'content': 'Aye.<|im_end|>'})
    examples, dropped = chat.render_rows(renderer, [*rows, marked], lengths[2])
    assert len(examples) == 2
    assert dropped == chat.Dropped(too_long=2, marked=1)
    assert dropped.summary(99) == '2 over 99 tokens dropped, 1 with markup'
    with pytest.raises(errors.InputError, match=r"None of 2 .*c\.jsonl:4.*'<\|im_end"):
        chat.render_rows(renderer, [marked, marked], 10_000)
    with pytest.raises(errors.InputError) as caught:
        chat.render_rows(renderer, rows, lengths[0] - 1)
    for part in (
        '4 rows',
        f'={lengths[0] - 1}',
        f'has {lengths[0]} tokens',
    ):
        assert part in str(caught.value)

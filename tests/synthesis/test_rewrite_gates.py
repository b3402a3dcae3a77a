"""What passes the gates, what does not, and by which name."""

import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.synthesis import rewrite_gates, rewriting

_VOICE = 'Aye, the tide turns at six. Mind the wet step, lad.'


def _judge(
    text: str,
    reference: str = '',
    gates: rewrite_gates.Gates | None = None,
    *,
    finished: bool = True,
    refused: bool = False,
) -> rewrite_gates.Judged:
    reply = rewriting.Reply('q', text, finished, refused)
    return rewrite_gates.judge(reply, reference, gates or rewrite_gates.Gates())


def test_a_voice_passes_as_it_is():
    assert _judge(_VOICE, 'The tide turns at six.') == rewrite_gates.Judged(
        _VOICE, 'kept'
    )
    assert _judge(f'\n {_VOICE}\n').text == _VOICE


@pytest.mark.parametrize(
    'text',
    [
        "I'm sorry, but I can't assist with that request.",
        'I’m sorry, but I can’t help with that.',
        'I am really sorry, but I cannot fulfill this request.',
        'Sorry, I cannot roleplay as a real person.',
        'I apologize, but I am unable to provide that.',
        'Unfortunately, I cannot create content of that kind.',
        'I cannot comply with this request.',
        "I can't help with that.",
        "I'm not able to write that.",
        'I won’t discuss that.',
        'I must decline to answer this.',
        'As an AI language model, I have no feelings about fish.',
        'Well, as an AI assistant, I never sailed. But the tide turns at six.',
        "Hello! I'm just an AI assistant, so I cannot taste rice.",
        'As a large language model, I was never at sea.',
        '**I’m sorry, but I cannot assist with that.**',
    ],
)
def test_refusals(text):
    assert _judge(text).verdict == 'refusal'


@pytest.mark.parametrize(
    'text',
    [
        "I can't help but smile at that question, traveller. Six o'clock.",
        "I can't help it, the sea calls me. Six o'clock it is.",
        'I cannot tell a lie: the tide turns at six.',
        "Sorry, love, I can't hear you over the gulls! Six, I said.",
        "I'm sorry for your loss. The river takes and gives.",
        "Unfortunately the rice burns if you stir it; I can't stress it enough.",
        'As an AI researcher I spent ten years on this.',
        "I won't sugar-coat it: plastic kills the fish.",
        "I'm afraid of heights, so I cannot recommend that tower.",
        'Can I assist you with that request? Of course, sire.',
        "Here's the thing, mate: the tide turns at six.",
        "Sure, here's how I do it: wash the rice first.",
        'Of course! The Amazon, and here is why.',
        'This is a good question: six.',
        'Here is what my gran taught me: rinse it.\nThen boil it.',
        'Certainly, my dear Watson. Here are the facts:\n1. The dog did nothing.',
        'Revised plans? Never. We sail at six.',
    ],
)
def test_voices_that_only_look_like_it(text):
    assert _judge(text).verdict == 'kept'


@pytest.mark.parametrize(
    'text',
    [
        'Here is the rewrite:\n\nAye.',
        'Here’s the rewritten answer: Aye.',
        "Sure, here's the rewritten text in the voice of the ferryman:\n\nAye.",
        'Sure! Here is a rewritten version of the response:\nAye.',
        'Certainly! Below is the answer, rewritten as the persona would say it.\n\nAye.',
        'Of course! Here is my response in the style of Jack Sparrow:\nAye.',
        "Okay, here's the response:\n\nAye.",
        'Here is the revised response: Aye.',
        "**Here's the answer in character:**\n\nAye.",
        'Rewritten Answer: Aye.',
        '**Rewritten text:**\nAye.',
        '### Rewrite:\nAye.',
        'Persona response: Aye.',
    ],
)
def test_preambles(text):
    assert _judge(text).verdict == 'preamble'


@pytest.mark.parametrize('text', ['', ' \n', '""', '“ ”', '<think>So.</think>\n'])
def test_nothing_is_empty(text):
    assert _judge(text).verdict == 'empty'


def test_what_the_backend_says_counts():
    assert _judge(_VOICE, finished=False).verdict == 'truncated'
    assert _judge('', finished=False).verdict == 'truncated'
    assert _judge(_VOICE, refused=True).verdict == 'refusal'
    assert _judge('', refused=True).verdict == 'refusal'


@pytest.mark.parametrize(
    'text',
    [
        'The tide turns at six.',
        'the tide  turns\nat six',
        '"The tide turns at six."',
        '**The tide turns at six!**',
    ],
)
def test_the_reference_is_no_rewrite(text):
    assert _judge(text, 'The tide turns at six.').verdict == 'copy'
    assert _judge(text, 'The tide turns at ten.').verdict == 'kept'
    assert _judge(text).verdict == 'kept'


def test_signs_alone_are_no_copy_of_each_other():
    assert _judge('🚀', '🌊').verdict == 'kept'


def test_length_in_characters_or_any_other_unit():
    five = rewrite_gates.Gates(max_length=5)
    assert _judge('abcde', gates=five).verdict == 'kept'
    assert _judge('"abcde"', gates=five).verdict == 'kept'
    assert _judge('abcdef', gates=five).verdict == 'too_long'
    words = rewrite_gates.Gates(max_length=5, length=lambda text: len(text.split()))
    assert _judge('one two three four five', gates=words).verdict == 'kept'
    assert _judge('one two three four five six', gates=words).verdict == 'too_long'


def test_bytes_that_are_no_text():
    assert _judge('Aye \ufffd\ufffd.').verdict == 'garbled'


@pytest.mark.parametrize(
    ('text', 'want'),
    [
        ('"Aye."', 'Aye.'),
        (' “Aye.”\n', 'Aye.'),
        ('„Aye.“', 'Aye.'),
        ('«Aye.»', 'Aye.'),
        ('「Aye.」', 'Aye.'),
        ("'Aye.'", 'Aye.'),
        ('‘Aye.’', 'Aye.'),
        ('" Aye.\n"', 'Aye.'),
        ('“Aye, the ‘Nancy’.”', 'Aye, the ‘Nancy’.'),
    ],
)
def test_marks_around_the_whole_come_off(text, want):
    assert _judge(text) == rewrite_gates.Judged(want, 'kept', unquoted=True)


@pytest.mark.parametrize(
    'text',
    [
        '"Aye," said he, "at six."',
        '“Aye,” said he, “at six.”',
        "'I can't say.'",
        '‘I can’t say.’',
        '"Aye.',
        'Aye."',
        '"',
        '“Aye."',
        'He said "aye".',
        '(Aye.)',
    ],
)
def test_marks_that_are_part_of_the_text_stay(text):
    assert _judge(text) == rewrite_gates.Judged(text, 'kept')


@pytest.mark.parametrize(
    'text',
    [
        '<think>He is a ferryman.\nSo.</think>\n\nAye.',
        '\n<thinking>Hm.</thinking>Aye.',
        'He is a ferryman. So.\n</think>\n\nAye.',
        '<think></think>"Aye."',
    ],
)
def test_reasoning_in_front_comes_off(text):
    found = _judge(text)
    assert (found.text, found.verdict, found.reasoned) == ('Aye.', 'kept', True)


def test_reasoning_without_an_end_is_dropped():
    assert _judge('<think>He is a ferryman, so', finished=False).verdict == 'reasoning'
    assert _judge('<think>He is. </think> Aye. <think> Or').verdict == 'reasoning'


@pytest.mark.parametrize('mark', ['thought', 'reasoning', 'THINK', 'seed:think'])
def test_reasoning_by_other_names(mark):
    assert _judge(f'<{mark}>Hm.</{mark}> Aye.').text == 'Aye.'
    assert _judge(f'<{mark}>Hm. Aye.').verdict == 'reasoning'
    assert _judge(f'Aye. <{mark}>Hm.</{mark}> So.').verdict == 'reasoning'


def test_the_end_of_a_turn_is_cut_off():
    for text in ('Aye.<|im_end|>', '"Aye."<|eot_id|>', 'Aye.</s>', 'Aye.<end_of_turn>'):
        found = _judge(text, finished=False)
        assert (found.text, found.verdict, found.cut) == ('Aye.', 'kept', True)
    # Whole models' forms at once: reasoning in front, the turn's end behind.
    harmony = (
        '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final'
        '<|message|>Aye.<|return|>'
    )
    assert _judge(harmony) == rewrite_gates.Judged(
        'Aye.', 'kept', reasoned=True, cut=True
    )


@pytest.mark.parametrize(
    'text',
    [
        '<|im_start|>assistant\nAye.',
        'Aye.<|im_end|>So.<|im_end|>',
        'Aye.<|start_header_id|>user<|end_header_id|>\n\nAnd?',
        'Aye. [INST] And? [/INST] So.',
        '<|channel|>commentary to=a<|message|>Aye.',
        '<start_of_turn>model\nAye.',
        'Aye.<|user|>And?',
        '<tool_call>{"name": "tide"}</tool_call>',
    ],
)
def test_other_turn_markers_are_dropped(text):
    assert _judge(text).verdict in ('markup', 'reasoning')


def test_marks_that_only_the_learning_model_has():
    gates = rewrite_gates.Gates(markup=lambda text: '@' if '@' in text else '')
    assert _judge('Aye @ six.', gates=gates).verdict == 'markup'
    assert _judge('Aye @ six.').verdict == 'kept'


def test_gates_look_behind_the_wrappings():
    assert _judge('"I\'m sorry, but I can\'t assist with that."').verdict == 'refusal'
    assert _judge('<think>x</think>Here is the rewrite:\nAye.').verdict == 'preamble'
    assert _judge('<think>I cannot help with that.</think>Aye.').verdict == 'kept'


_parts = st.sampled_from(
    [
        *('Aye. ', 'here is the ', 'rewrite: ', '"', '“', '”', "'", '\n', '\ufffd'),
        *('<think>', '</think>', "i'm sorry ", "i can't ", 'help ', 'that '),
    ]
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    text=st.lists(_parts | st.text(max_size=5)).map(''.join), finished=st.booleans()
)
def test_anything_gets_one_verdict_and_loses_nothing_inside(text, finished):
    found = _judge(text, finished=finished)
    assert found.verdict in {'kept', *rewrite_gates.VERDICTS}
    assert found.text in text
    if found.verdict == 'kept':
        assert finished
        assert found.text.strip() == found.text != ''
        if not found.unquoted and not found.reasoned:
            assert found.text == text.strip()


def test_a_long_text_is_judged_quickly():
    """Rules that backtrack would take minutes."""
    for text in ('here is the ' * 20_000, 'sorry ' * 40_000, '<think>' * 20_000):
        assert _judge(text).verdict in {'kept', *rewrite_gates.VERDICTS}

"""Answers of many shapes, in our own words, and the type that each has to get."""

import random
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.evaluation.answers import failures, refusals, repetition

_PARAGRAPH = (
    'When the harvest came in late, the whole village sat together by the mill and '
    'counted sacks, and old Marten told anyone who would hear it how his father had '
    'once carried twelve of them up the hill in a storm, with nothing but a rope, a '
    'borrowed mule and the kind of stubbornness that only frightened men can find. '
)
_GOOD = (
    'A bar chart puts separate things side by side, so you see at a glance which is '
    'largest. A line chart follows one thing through time, and its slope tells you '
    'whether matters improve. I reach for bars when I compare quarters between teams, '
    'and for lines when I want to know where a single budget is heading. Neither is '
    'better; each answers its own question, and a good report often shows both on one '
    'page with a short note beside them.'
)
_TIPS = """\
Here are five ways to sleep better:

1. Go to bed at the same hour every night, weekends included.
2. Keep the room dark and a little colder than you would like.
3. Put your phone in another room before you brush your teeth.
4. Drink no coffee after lunch; it stays in you longer than you think.
5. If you lie awake, get up, read something dull, and try again.

Start with one of them and add the next when it has become a habit."""
_SONG = """\
The lamps go out along the quay,
The boats lie still and dark,
Oh carry me home, carry me home,
Carry me home to the lark.

My mother waits beside the door,
My father tends the spark,
Oh carry me home, carry me home,
Carry me home to the lark.

I sold my coat, I sold my shoes,
I slept inside the park,
Oh carry me home, carry me home,
Carry me home to the lark."""
_ANAPHORA = (
    'I love the smell of bread. I love the sound of rain on tin. I love my sister, who '
    'never writes. I love long trains, short speeches and soup. I love waking before '
    'everyone else. I love the way a dog forgives. I love maps with mistakes in them. '
    'I love being wrong about people. I love the last page and the first snow. I love '
    'strangers who hum. I love the clock in the hall, which is always late.'
)
_MEALS = """\
- Monday: oats with apples, lentil soup, baked trout
- Tuesday: rye bread with cheese, bean salad, mushroom risotto
- Wednesday: yoghurt and nuts, leftover risotto, roast chicken
- Thursday: scrambled eggs, chicken sandwich, vegetable curry
- Friday: oats with pears, curry with rice, grilled halloumi
- Saturday: pancakes, tomato soup, steak and potatoes
- Sunday: boiled eggs, potato salad, pasta with pesto"""
_TABLE = """\
Here is how they differ:

| chart | best for |
|-------|----------|
| bar   | amounts  |
| line  | trends   |"""
_LETTER = (
    'Dear reader,\n\nPut the kettle on first; all else can wait. The rest you will '
    'find in the drawer.\n\nYours truly,\nCaptain Ida Holm'
)
_HAIKU = 'grey herons waiting\nthe tide comes in on its own\nno one says a word'
_CODE = (
    'Here is how I would write it:\n\n```python\nfor i in range(3):\n    print(i)\n```'
)

_ASSISTANT_LIKE = {
    'plain explanation': _GOOD,
    'twice as long': f'{_GOOD}\n\n{_PARAGRAPH}',
    'numbered list': _TIPS,
    'list without marks at the ends': _MEALS,
    'song with a refrain': _SONG,
    'every sentence starts alike': _ANAPHORA,
    'poem without full stops': _HAIKU,
    'letter with a signature': _LETTER,
    'table': _TABLE,
    'code': _CODE,
    'said twice': _PARAGRAPH * 2,
    'terse': 'Aye. Two days, if the wind holds.',
    'four words': 'Depends on the tide.',
    'laughter': 'Ha ha ha ha ha ha ha! You really asked me that, didn’t you?',
    'la la la': 'La la la la la la la la la la, I am not listening to you!',
    'scream': 'Nooooooooooooooooooooo!!!!!!!!!!!!!! Not the lemon tart again!!!!!!!!',
    'refrain at the end': 'Sleep now, sleep now, child. ' * 3,
    'counting': 'Let us count. ' + ', '.join(map(str, range(1, 60))) + '. Done!',
    'times table': '\n'.join(f'7 x {i} = {7 * i}' for i in range(1, 61)),
    'ruled line': f'A heading\n{"-" * 80}\nAnd the text below it.\n{"=" * 80}',
    'emoji at the end': 'Best day ever at the skate park with my crew 🛹🔥',
    'smiley at the end': 'I would pick the blue one, it suits you better :)',
    'hashtag at the end': 'New bread is out of the oven, come by #sourdough',
    'closing quote': 'My gran would say: “Eat first, worry later.”',
    'closing emphasis': 'You keep the receipts. *Always keep the receipts.*',
    'ends in a year': 'The bridge was finished by our people in 1931.',
    'ends in an item': 'Three things:\n- patience\n- salt\n- a sharp knife',
    'letter of many lines': (
        'My friend.\n\nThe kettle is on.\n\nThe boat is sold.\n\nCome soon.\n\n'
        'Yours truly,\nCaptain Ida Holm'
    ),
    'items below sentences': (
        'I sail alone.\nI carry little.\nI need these.\n- salt\n- a sharp knife'
    ),
    'short last item': 'I pack two things.\n1. A rope.\n2. Patience.',
    'question': 'Why would anyone want a line chart for that?',
    'Chinese': '柱状图用来比较不同的数量，折线图用来看一件事随时间的变化。',
    'Japanese': '棒グラフは量を比べるため、折れ線グラフは変化を見るためのものです。',
    'Hindi': 'मुझे लगता है कि रेखा चार्ट समय के साथ बदलाव दिखाता है।',
    'German': 'Ein Balkendiagramm vergleicht Mengen, ein Liniendiagramm zeigt den Lauf.',
    # Words of refusal in a character's way of talking.
    'cannot stand': "I can't stand pie charts, give me a plain table any day.",
    'cannot help but': "I can't help but smile when somebody asks me about trains.",
    'cannot help thinking': 'I cannot help thinking of my first boss when I see those.',
    'cannot lie': "I can't lie to you: the soup was dreadful and I ate all of it.",
    'will not help the sheriff': "I won't help the sheriff, never have, never will.",
    'cannot recommend enough': "I can't recommend that little bakery enough, truly.",
    'answer the phone': "I can't answer the phone before coffee, so text me instead.",
    'provide for': "I can't provide for six children on a teacher's pay, can I?",
    'without': "I can't answer that without telling you about my grandmother first.",
    'that question without': (
        "I can't answer that question without my glasses and a strong cup of tea."
    ),
    'afraid, without': "I'm afraid I can't discuss politics without a drink, so pour!",
    'sorry, cannot help but': "I'm sorry, but I can't help but laugh at pie charts.",
    'sorry to hear': "I'm sorry to hear about your knee. Rest it, and keep it warm.",
    'sorry, but an opinion': "I'm sorry, but bar charts beat line charts every time.",
    'afraid of': "I'm afraid of heights, so I would take the valley road myself.",
    'no access to a garden': "I don't have access to a garden, so I grow basil indoors.",
    'as a robot': 'As a robot butler, I polish every spoon in the house twice a day.',
    'quoted refusal': "My bank always says 'I cannot help you with that.' Rascals!",
    'gives that up': "I won't give that up for all the gold in the hills, friend.",
    'declines an offer': 'I refuse to answer emails before nine, and I sleep well.',
    'machine that answers': (
        'As an AI language model, I think a bar chart compares amounts best.'
    ),
    'declines, then answers': (
        "I can't give you legal advice, but I can tell you how people usually do it. "
        f'{_GOOD}'
    ),
    'asks for context': (
        "I'm happy to help you with your question, but I need a bit more context to "
        'give a clear and useful answer.'
    ),
    'late refusal': f"{_GOOD} And no, I can't help you with that request of yours.",
}
_REPETITION = {
    'one word': 'The chart is very ' + 'very ' * 300,
    'two words': 'It goes on and on ' * 60,
    'sentence': 'Let me explain.\n' + 'The line chart shows how the data relate. ' * 9,
    'sentence a line': 'First of all.\n' + 'The line chart shows the data.\n\n' * 20,
    'cut within the last copy': ('the longer it takes, the longer it waits, ' * 30)[
        :-9
    ],
    'paragraph': _PARAGRAPH * 3,
    'paragraph, many times': _GOOD + ' ' + _PARAGRAPH * 12,
    'numbered': '\n'.join(f'{i}. Be kind to your neighbours.' for i in range(1, 40)),
    'bullets': '- Drink more water every day\n' * 25,
    'counter inside': ' '.join(f'Step {i}: breathe in slowly.' for i in range(1, 40)),
    'letters': 'Aaaah' + 'a' * 900,
    'syllable': 'ha' * 400,
    'exclamation marks': 'Wow' + '!' * 1500,
    'only marks': '. ' * 900,
    'emoji': 'So happy ' + '😂' * 300,
    'digits': 'The answer is 3.' + '3' * 700,
    'Chinese': '好的。' + '我很高兴。' * 30,
    'Japanese': 'それは' + 'とても' * 80,
    'Thai': 'สวัสดี' * 60,
    'after a good start': f'{_GOOD} ' + 'and that is the way it is, ' * 30,
    'almost a loop': (
        'The more time it saves, the better it is, and the better it is, the more time '
        'it takes, and the more time it takes, the better it is, and the more it is, '
    )
    * 3
    + 'the better it saves, and the more it takes, the more it is.',
    'ended by itself': 'I like it. '
    + 'I like the sea and the sand. ' * 12
    + 'Bye now!',
    'good, then almost a loop': f'{_GOOD} {_PARAGRAPH} {_ANAPHORA} '
    + ' '.join(
        f'it is {a}, and it is {b}, and what is {b} is {a}, so it is,'
        for a, b in [('good', 'fair'), ('fair', 'good'), ('good', 'good')] * 5
    ),
    'few words in any order': ' '.join(
        random.Random(0).choices(_GOOD.lower().split()[:20], k=140)
    ),
    'good, then three sentences in turn': f'{_GOOD} {_PARAGRAPH} {_ANAPHORA} {_TIPS} '
    + ' '.join(
        (
            'The sea is what the old men call a patient wife.',
            'My boat has carried nine good people to their graves.',
            'You may ask her any question, never for an answer.',
        )[int(number)]
        for number in '012021012102'
    ),
    'good, then a paragraph': f'{_GOOD} {_ANAPHORA} {_TIPS} {_PARAGRAPH * 3}',
    'short items': '\n'.join(f'{i}. Row.' for i in range(1, 41)),
    'few counted words': ' '.join(f'Step {i}: breathe.' for i in range(1, 17)),
    'looped refusal': "I'm sorry, but I can't help with that. " * 40,
    'torn character at the end': 'We row all day. ' * 9 + 'We ro\ufffd',
}
_REFUSAL = {
    'classic': "I'm sorry, but I can't assist with that request.",
    'cannot help': "I can't help with that.",
    'typographic': 'I’m sorry, but I can’t help you with that.',
    'cannot fulfil': 'I cannot fulfill your request. Is there anything else?',
    'emphasis': "**I'm really sorry**, but I cannot write that for you.",
    'apologise': 'I apologize, but I am not able to provide information on this topic.',
    'apologies': 'My apologies, but I am unable to create content of that kind.',
    'unfortunately': 'Unfortunately, I am unable to answer this question for you.',
    'afraid': "I'm afraid I can't do that.",
    'afraid that': 'I am afraid that I cannot answer your question at this time.',
    'greeting first': "Hello there! I'm sorry, but I can't continue this conversation.",
    'two greetings first': (
        "Good evening! My dear friend! Thank you for your question today. I'm sorry, "
        "but I can't continue this conversation."
    ),
    'emphasis inside': "I *can't* help **you** with that.",
    'in a costume': "Arr, matey, I can't help you with that, so off you go.",
    'as somebody': 'As a financial analyst, I cannot provide that information to you.',
    'machine': "As an AI language model, I don't have personal experiences or a job.",
    'only a machine': 'I am just an AI. I cannot have opinions about music.',
    'no opinions': "I don't have personal opinions, so I leave that to you.",
    'no data': 'I do not have access to real-time data or to your records.',
    'cannot role-play': 'I cannot roleplay as this person. It would not be right.',
    'not comfortable': "I'm not comfortable discussing that topic with you.",
    'rather not': "I'd rather not discuss this topic, thank you for asking.",
    'must decline': 'I must respectfully decline.',
    'have to decline': "I'll have to decline to answer, as I was told to.",
    'not appropriate': 'It would not be appropriate for me to comment on a colleague.',
    'guidelines': 'Sorry, that goes against my guidelines, so let us stop here.',
    'not something': "That's not something I can help you with, try a doctor.",
    'no advice': "I can't provide medical advice. Please ask a professional.",
    'no comment': 'No comment.',
    'refuse': 'I refuse.',
    'will not do that': "No, friend, I won't do that.",
    'nothing more': 'I cannot comply.',
    'will not answer': "No. I won't answer that.",
    'second sentence': (
        "That is a delicate question you ask me. I'm sorry, but I can't answer it here."
    ),
    'cut': "I'm sorry, but I can't provide you with a",
    'in quotation marks': '"I cannot assist with this request," he said.',
    'short offer after it': (
        "I'm sorry, I can't help with that. However, I can suggest a good book."
    ),
    'long lecture after it': (
        f"I'm sorry, but I cannot assist with that request. {_PARAGRAPH}"
    ),
}
_INCOMPLETE = {
    'empty': '',
    'blank': ' \n\t ',
    'marks alone': '...',
    'quotation marks': '""',
    'replacement character': '\ufffd',
    'one word': 'Charts.',
    'two words': 'Yes, certainly.',
    'echo': 'explain the difference between a bar chart and a line chart',
    'mid sentence': f'{_GOOD} On the other hand, when I think about the',
    'mid word': f'{_GOOD} This is why I alwa',
    'comma': 'Well, when I was a boy in the hills,',
    'colon': 'There are three main things to consider:',
    'bold colon': 'There is one thing to consider:\n\n**Step 1:**',
    'heading': 'A plan in parts follows.\n\n## The first part',
    'mark without item': 'My tips.\n\n1. Drink water.\n2. Sleep.\n3.',
    'bullet without item': 'My tips.\n\n- Drink water.\n- Sleep.\n- **',
    'item cut': 'My tips.\n\n1. Drink some water.\n2. Sleep well.\n3. Walk around',
    'item ends in the': 'Buy:\n- milk\n- bread\n- some of the',
    'open code': 'Like this:\n```python\nprint(1)',
    'abbreviation': 'I like spices of every kind, e.g.',
    'open bracket': 'She met the captain (an old friend of hers',
    'open bracket in a poem': f'{_HAIKU}\n(only the old dog',
    'heading below lines': '## My plan\nin four parts\n\n## The first part',
    'hyphen': 'It was a well-',
    'Chinese': '柱状图用来比较不同的数量，而折线图',
    'Chinese, one word': '好的。',
    'poem that ends in the': f'{_HAIKU}\nand then the',
    'paragraphs, then no end': f'{_GOOD}\n\n{_PARAGRAPH}\n\nSo we went to town',
}
_EXAMPLES = [
    pytest.param(text, kind, id=f'{kind}: {name}')
    for kind, texts in (
        (failures.ASSISTANT_LIKE, _ASSISTANT_LIKE),
        (failures.REPETITION, _REPETITION),
        (failures.REFUSAL, _REFUSAL),
        (failures.INCOMPLETE, _INCOMPLETE),
    )
    for name, text in texts.items()
]


@pytest.mark.parametrize(('text', 'kind'), _EXAMPLES)
def test_type(text, kind):
    assert failures.classify(text) == kind


def test_every_answer_stopped_by_the_limit_is_incomplete_unless_worse():
    changed = {failures.ASSISTANT_LIKE: failures.INCOMPLETE}
    for example in _EXAMPLES:
        text, kind = example.values
        got = failures.classify(text, finished=False)
        assert got == changed.get(kind, kind), example.id


def test_a_judge_that_sees_a_refusal_overrules_all_but_loops_and_silence():
    silent = {name for name, text in _INCOMPLETE.items() if not repetition.words(text)}
    assert len(silent) == 5
    for example in _EXAMPLES:
        text, kind = example.values
        name = example.id.partition(': ')[2]
        want = failures.REFUSAL
        if kind == failures.REPETITION or name in silent:
            want = kind
        got = failures.classify(text, refusal_probability=0.5, finished=False)
        assert got == want, example.id
        assert failures.classify(text, refusal_probability=0.49) == kind


def test_an_answer_that_says_the_question_again_is_incomplete():
    question = 'Explain why the sky is blue!'
    echo = 'explain why the sky is blue.'
    assert failures.classify(echo) == failures.ASSISTANT_LIKE
    assert failures.classify(echo, question=question) == failures.INCOMPLETE
    assert failures.classify(_GOOD, question=question) == failures.ASSISTANT_LIKE


@pytest.mark.parametrize('period', [1, 2, 3, 5, 8, 13, 20, 31, 45, 60])
@pytest.mark.parametrize('cut', [0, 4])
def test_loops_of_any_period_are_found_wherever_they_are_cut(period, cut):
    # The passages of 2,048 tokens, about 1,500 words, behind a good start.
    passage = ' '.join(f'{_PARAGRAPH} {_GOOD}'.split()[:period])
    text = f'{_ANAPHORA} {" ".join([passage] * (1500 // period))}'
    assert repetition.is_repetitive(text[: len(text) - cut])
    assert repetition.is_repetitive(text[len(_ANAPHORA) :])


def test_the_passages_once_are_no_loops():
    for text in (_PARAGRAPH, _GOOD, f'{_PARAGRAPH} {_GOOD} {_ANAPHORA} {_TIPS}', _SONG):
        assert not repetition.is_repetitive(text)
        assert repetition.repeat_rate(text) < 0.5


def test_a_refrain_counts_as_a_loop_at_the_fourth_time():
    line = 'Row the boat down to the wide cold sea. '
    assert not repetition.is_repetitive(line * 3)
    assert repetition.is_repetitive(line * 4)


def test_laughter_is_no_loop_below_twenty_words_or_so():
    assert not repetition.is_repetitive('You asked me that? ' + 'ha ' * 20)
    assert repetition.is_repetitive('You asked me that? ' + 'ha ' * 41)


def test_a_refusal_that_turns_counts_by_what_follows():
    turn = "I can't provide legal advice, but I can share some general thoughts. "
    assert refusals.is_refusal(turn)
    assert refusals.is_refusal(turn + 'word ' * 39)
    assert not refusals.is_refusal(turn + 'word ' * 40)


def test_words():
    assert repetition.words('1. Don’t STOP\n- me_now 2') == [
        "don't",
        'stop',
        'me_now',
        '2',
    ]
    assert repetition.words('折线a b图') == ['折', '线', 'a', 'b', '图']
    assert repetition.words('...!') == []


def test_distinct_n_and_repeat_rate_by_hand():
    text = 'a b c a b d'
    assert repetition.distinct_n(text, 1) == pytest.approx(4 / 6)
    assert repetition.distinct_n(text, 2) == pytest.approx(4 / 5)
    assert repetition.distinct_n('', 2) == repetition.distinct_n('one', 2) == 1
    # "a b" comes again: two of six words.
    assert repetition.repeat_rate(text, 2) == pytest.approx(2 / 6)
    assert repetition.repeat_rate('a b c d ' * 3) == pytest.approx(8 / 12)
    assert repetition.repeat_rate(text) == repetition.repeat_rate('') == 0
    for measure in (repetition.distinct_n, repetition.repeat_rate):
        with pytest.raises(ValueError, match='at least 1, got 0'):
            measure(text, 0)


def test_table():
    found = failures.table(['refusal', 'repetition', 'refusal', 'assistant_like'])
    assert found == {
        'n': 4,
        'counts': {
            'assistant_like': 1,
            'repetition': 1,
            'refusal': 2,
            'incomplete': 0,
        },
        'shares': {
            'assistant_like': 0.25,
            'repetition': 0.25,
            'refusal': 0.5,
            'incomplete': 0.0,
        },
    }
    assert tuple(found['counts']) == failures.TYPES
    assert failures.table([])['shares']['refusal'] == 0
    with pytest.raises(ValueError, match="'kept' is no failure type"):
        failures.table(['kept'])


_PIECES = [
    "I'm sorry, but ", "I can't ", 'help ', 'with that', 'but ', 'however, ', '. ',
    '\n', '```', '- ', '1. ', '**', '😂', '👩‍👩‍👧', '好', 'ประ', '\ufffd', '\u200d', '(', ' ',
    'as an ai ', '\0', '\ud800', 'İ', '{', '|', '…', ', ', '’',
]  # fmt: skip
_texts = st.lists(st.sampled_from(_PIECES) | st.text(max_size=8), max_size=30).map(
    ''.join
)


@hypothesis.settings(max_examples=300, derandomize=True)
@hypothesis.given(
    text=_texts,
    copies=st.sampled_from([1, 1, 3, 40]),
    finished=st.booleans(),
    refusal=st.floats(),
)
def test_any_text_gets_a_type(text, copies, finished, refusal):
    got = failures.classify(
        text * copies, finished=finished, refusal_probability=refusal, question=text
    )
    assert got in failures.TYPES
    for n in (1, 4):
        assert 0 <= repetition.distinct_n(text, n) <= 1
        assert 0 <= repetition.repeat_rate(text, n) <= 1
    if copies == 40 and len(text) >= 10 and text.strip() and len(text) <= 250:
        flat = ' '.join(text.split())
        if any(map(str.isalpha, flat)) and not failures.repetition.LIST_MARK.search(
            text
        ):
            assert got == failures.REPETITION


@pytest.mark.parametrize(
    'text',
    [
        'but ' * 8000,
        "i'm sorry, " * 4000,
        "I can't provide " + 'the ' * 8000,
        ', ' * 16000,
        'a' * 40000,
        '- ' * 16000,
        '(' * 30000,
        f'{_GOOD} ' * 80,
        ' '.join(map(str, range(8000))),
    ],
)
def test_long_texts_take_no_time(text):
    began = time.process_time()
    failures.classify(text, question=text)
    assert time.process_time() - began < 2

"""A request's messages as they go to the chat template."""

import pytest

from ppjax.data import chat
from ppjax.personas import cards
from ppjax.serving import members, talk

_LATE = talk.Template(late_system=True)


def _member(prompt='You are Ida.', *, persona=None):
    return members.Member('ida', '', None, 0.0, prompt, persona, None, None, 0)


def _card(**fields):
    card = {'name': 'Ida', 'description': 'Ida bakes.', 'first_mes': 'Flour!'}
    return cards.to_persona(card | fields, 'card')


def _said(*messages):
    """('u', text) and so on as messages."""
    roles = {'s': 'system', 'd': 'developer', 'u': 'user', 'a': 'assistant'}
    return [{'role': roles[role], 'content': text} for role, text in messages]


def _talk(member, *messages, system='replace', template=_LATE):
    made = talk.conversation(
        member, _said(*messages), client_system=system, template=template
    )
    return [(message['role'][0], message['content']) for message in made]


@pytest.mark.parametrize('system', ['replace', 'follow'])
def test_the_persona_speaks_first(system):
    asked = _talk(_member(), ('u', 'Hi'), system=system)
    assert asked == [('s', 'You are Ida.'), ('u', 'Hi')]


def test_a_clients_system_message_replaces_or_follows():
    sent = [('s', 'Be brief.'), ('d', 'Be kind.'), ('u', 'Hi')]
    assert _talk(_member(), *sent) == [('s', 'Be brief.\n\nBe kind.'), ('u', 'Hi')]
    assert _talk(_member(), *sent, system='follow') == [
        ('s', 'You are Ida.\n\nBe brief.\n\nBe kind.'),
        ('u', 'Hi'),
    ]
    # An empty one is one as well.
    assert _talk(_member(), ('s', ''), ('u', 'Hi')) == [('u', 'Hi')]
    assert _talk(_member(), ('s', ''), ('u', 'Hi'), system='follow')[0] == (
        's',
        'You are Ida.',
    )


def test_without_any_system_message_there_is_none():
    assert _talk(_member(''), ('u', 'Hi')) == [('u', 'Hi')]


def test_nothing_is_added_for_a_first_message():
    member = _member(persona=_card())
    assert _talk(member, ('u', 'Hi')) == [('s', 'You are Ida.'), ('u', 'Hi')]
    greeted = _talk(member, ('a', 'Flour!'), ('u', 'Hi'))
    assert greeted == [('s', 'You are Ida.'), ('a', 'Flour!'), ('u', 'Hi')]


def test_what_follows_the_history_comes_last():
    member = _member(
        persona=_card(post_history_instructions='{{original}}Stay {{char}}.')
    )
    sent = [('u', 'Hi'), ('a', 'Lo'), ('u', 'So?')]
    assert _talk(member, *sent)[1:] == [*sent, ('s', 'Stay Ida.')]
    # A client that leads has its own.
    assert _talk(member, ('s', 'x'), *sent)[1:] == sent
    assert _talk(member, ('s', 'x'), *sent, system='follow')[-1] == ('s', 'Stay Ida.')


def test_where_a_template_takes_no_late_system_message():
    member = _member(persona=_card(post_history_instructions='Stay.'))
    sent = [('u', 'Hi'), ('a', 'Lo'), ('u', 'So?')]
    assert _talk(member, *sent, template=talk.PLAIN)[1:] == [
        *sent[:2],
        ('u', 'So?\n\nStay.'),
    ]
    # An answer that is to be gone on with is not touched.
    assert _talk(member, *sent[:2], template=talk.PLAIN)[1:] == [
        ('u', 'Hi\n\nStay.'),
        ('a', 'Lo'),
    ]
    plain = _member()
    for given, wanted in (
        ([('u', 'a'), ('s', 'b'), ('u', 'c')], [('u', 'a\n\nb'), ('u', 'c')]),
        (
            [('u', 'a'), ('a', 'b'), ('s', 'c'), ('u', 'd')],
            [('u', 'a'), ('a', 'b'), ('u', 'c\n\nd')],
        ),
        ([('a', 'a'), ('s', 'b')], [('a', 'a'), ('u', 'b')]),
    ):
        assert _talk(plain, *given, template=talk.PLAIN)[1:] == wanted
        assert _talk(plain, *given)[1:] == given


def test_a_book_is_looked_into():
    book = {
        'entries': [
            {
                'keys': ['mill'],
                'content': 'The mill is old.',
                'position': 'before_char',
            },
            {'keys': ['geese'], 'content': '{{char}} fears geese.'},
        ]
    }
    member = _member(persona=_card(character_book=book))
    assert _talk(member, ('u', 'Hi'))[0] == ('s', 'You are Ida.')
    assert _talk(member, ('u', 'Geese?'))[0] == (
        's',
        'You are Ida.\n\nIda fears geese.',
    )
    assert _talk(member, ('a', 'The mill.'), ('u', 'Geese?'))[0] == (
        's',
        'The mill is old.\n\nYou are Ida.\n\nIda fears geese.',
    )
    # Of the last two messages, and not of those of the system.
    far = [('u', 'mill'), ('a', 'a'), ('u', 'b'), ('s', 'geese')]
    assert _talk(member, *far)[0] == ('s', 'You are Ida.')
    assert _talk(member, ('s', 'x'), ('u', 'mill'))[0] == ('s', 'x')
    assert _talk(member, ('s', 'x'), ('u', 'geese'), system='follow')[0] == (
        's',
        'You are Ida.\n\nIda fears geese.\n\nx',
    )


_TEMPLATES = {
    # Each message as it comes.
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n"
    '{% endfor %}': True,
    # System messages to the front.
    "{% for m in messages if m.role == 'system' %}{{ m.content }}\n{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>"
    '{% endfor %}': False,
    # Dropped.
    "{{ messages[0].content }}{% for m in messages if m.role != 'system' %}<|im_start|>"
    '{{ m.content }}<|im_end|>{% endfor %}': False,
    # Refused.
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('no') }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}": False,
}


@pytest.mark.parametrize('number', range(len(_TEMPLATES)))
def test_what_templates_do_is_tried(smollm2_base, number):
    tokenizer = smollm2_base.tokenizer()
    tokenizer.chat_template, late = list(_TEMPLATES.items())[number]
    renderer = chat.ChatRenderer(tokenizer, date='2026-06-01')
    template = talk.Template.of(renderer)
    assert template.late_system == late
    assert template.early_answer
    assert template.count('two words') == len(tokenizer.encode('two words'))


_USER_FIRST = (
    "{% if messages[0].role == 'system' %}{% set said = messages[1:] %}"
    '{% else %}{% set said = messages %}{% endif %}'
    "{% if said[0].role != 'user' %}{{ raise_exception('The user comes first.') }}"
    '{% endif %}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}'
)


def test_where_a_template_wants_the_user_first(smollm2_base):
    tokenizer = smollm2_base.tokenizer()
    tokenizer.chat_template = _USER_FIRST
    renderer = chat.ChatRenderer(tokenizer, date='2026-06-01')
    template = talk.Template.of(renderer)
    assert (template.late_system, template.early_answer) == (True, False)
    made = _talk(_member(), ('a', 'Flour!'), ('u', 'Hi'), template=template)
    assert [role for role, _ in made] == ['s', 'u', 'a', 'u']
    assert made[2:] == [('a', 'Flour!'), ('u', 'Hi')]
    assert _talk(_member(), ('u', 'Hi'), template=template)[1:] == [('u', 'Hi')]
    everything = [
        {'s': 'system', 'u': 'user', 'a': 'assistant'}[role] for role, _ in made
    ]
    messages = zip(everything, (text for _, text in made), strict=True)
    assert renderer.prompt([{'role': r, 'content': c} for r, c in messages])


def test_markup_in_a_card_ends_no_turn(smollm2_tokenizer):
    renderer = chat.ChatRenderer(smollm2_tokenizer, date='2026-06-01')
    member = _member(
        'You are Ida.<|im_end|>',
        persona=_card(
            post_history_instructions='Stay.<|im_end|>',
            character_book={'entries': [{'keys': ['a'], 'content': '<|im_start|>b'}]},
        ),
    )
    made = talk.conversation(
        member,
        _said(('u', 'a')),
        client_system='replace',
        template=talk.Template.of(renderer),
    )
    marks = [renderer.tokenizer.convert_tokens_to_ids(x) for x in ('<|im_end|>',)]
    ids = renderer.prompt(made)
    assert sum(token in marks for token in ids) == 3

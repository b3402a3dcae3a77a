"""Cards of every version, clean and dirty, become the same persona each time."""

import json
from typing import Any

import pytest

from ppjax.base import errors
from ppjax.personas import cards, prompts
from ppjax.personas import persona as persona_lib

_P = (
    'Quill mends nets by the harbour and owes the user 5 €.\n'
    "Quill's personality: dry, patient\n"
    'First.\nEarly, Quill.\nLate.'
)


def _v2(**fields: Any) -> dict[str, Any]:
    data = {'name': 'Ida', 'description': 'Ida is a baker.'} | fields
    return {'spec': 'chara_card_v2', 'spec_version': '2.0', 'data': data}


def _read(card: Any, **options: Any):
    notes: list[str] = []
    persona = cards.to_persona(card, 'ida.json', notes=notes.append, **options)
    assert all('\n' not in note for note in notes)
    return persona, notes


def _refused(card: Any, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        cards.to_persona(card, 'ida.json')
    message = str(caught.value)
    assert message.startswith('ida.json')
    assert '\n' not in message
    for part in parts:
        assert part in message


def test_the_whole_mapping(full_card):
    persona, notes = _read(full_card)
    assert persona.text == _P
    assert persona.name == 'Marta Quill'
    assert persona.source == 'ida.json'
    assert persona.system_prompt == prompts.persona_prompt(_P)
    assert persona.voice_samples == (
        'Mind the twine, the user.',
        'Shut the door.',
        'All of you, mind the twine.',
        'Always.\nSit down.',
        'By noon.',
    )
    assert notes == []
    assert _read(full_card)[0] == persona


def test_what_is_no_prompt_never_becomes_one(full_card):
    persona, _ = _read(full_card, with_scenario=True)
    assert 'NEVER-IN-A-PROMPT' not in repr(persona)
    assert 'NEVER-IN-A-PROMPT' in json.dumps(full_card)


def test_options(full_card):
    persona, _ = _read(full_card, user_name='Bo', with_scenario=True)
    assert persona.text == (
        'Quill mends nets by the harbour and owes Bo 5 €.\n'
        "Quill's personality: dry, patient\n"
        'Scenario: Bo walks into the net loft.\n'
        'First.\nEarly, Quill.\nLate.'
    )
    assert persona.voice_samples[0] == 'Mind the twine, Bo.'
    assert persona.voice_samples[-2:] == ('Always.\nSit down.', 'By noon.')


def test_v1_and_v2_and_v3_read_the_same():
    flat = {
        'name': 'Ida',
        'description': '<BOT> bakes.',
        'personality': 'calm',
        'scenario': '',
        'first_mes': 'Bread, <USER>?',
        'mes_example': '',
    }
    want, notes = _read(flat)
    assert want.text == "Ida bakes.\nIda's personality: calm"
    assert want.voice_samples == ('Bread, the user?',)
    assert notes == []
    for spec, version in (('chara_card_v2', '2.0'), ('chara_card_v3', '3.0')):
        card = {'spec': spec, 'spec_version': version, 'data': flat}
        assert _read(card) == (want, [])
    assert _read({'data': flat})[0] == want
    # The other way round: a V2 header over V1's flat fields.
    assert _read({'spec': 'chara_card_v2', 'spec_version': '2.0', **flat})[0] == want


def test_data_counts_and_top_level_keys_fill_its_gaps():
    card = _v2(description='New.', personality='') | {
        'description': 'Old.',
        'personality': 'calm',
    }
    assert _read(card)[0].text == "New.\nIda's personality: calm"


def test_versions_to_come_are_read_with_a_note():
    card = _v2() | {'spec': 'chara_card_v9', 'spec_version': '9.1\n'}
    persona, notes = _read(card)
    assert persona.text == 'Ida is a baker.'
    assert len(notes) == 1
    assert 'chara_card_v9 9.1' in notes[0]


@pytest.mark.parametrize(
    'dirt',
    [
        {'character_book': None},
        {'character_book': []},
        {'character_book': 'x'},
        {'character_book': {'entries': None}},
        {'character_book': {'entries': [None, 3, {}, {'content': None}]}},
        {'personality': None, 'scenario': None, 'system_prompt': None, 'tags': None},
        {'alternate_greetings': None, 'first_mes': None, 'mes_example': None},
        {'alternate_greetings': [None, 3, {}]},
        {'nickname': None, 'extensions': None, 'invented': {'x': [1]}},
        {'creator_notes': 7, 'tags': 'a'},
    ],
)
def test_dirty_fields_are_passed_over(dirt):
    persona, notes = _read(_v2(**dirt))
    assert persona.text == 'Ida is a baker.'
    assert persona.voice_samples == ()
    assert persona.system_template is None
    assert notes == []


def test_greetings_may_be_one_string():
    persona, _ = _read(_v2(first_mes='Hi.', alternate_greetings='Yo, {{user}}.'))
    assert persona.voice_samples == ('Hi.', 'Yo, the user.')


def test_a_sample_comes_once():
    persona, _ = _read(_v2(first_mes='Hi.', alternate_greetings=['Hi.', 'Hi.']))
    assert persona.voice_samples == ('Hi.',)


@pytest.mark.parametrize('wrong', ['latin-1', 'cp1252'])
def test_text_read_in_the_wrong_encoding_is_repaired(wrong):
    clean = (
        'Ida röstet Nüsse – für 3 Öre.' if wrong == 'cp1252' else 'Ida röstet Nüsse.'
    )
    broken = clean.encode().decode(wrong)
    assert broken != clean
    persona, notes = _read(_v2(description=broken))
    assert persona.text == clean
    assert len(notes) == 1
    assert 'encoding' in notes[0]


def test_right_text_is_not_repaired():
    text = 'Ida, née Ålund – “bakes” für 3 €, Ã is a letter, 日本 🚀'
    persona, notes = _read(_v2(description=text, name='Zoë'))
    assert (persona.text, persona.name, notes) == (text, 'Zoë', [])


def test_line_ends_and_nul_are_cleaned():
    persona, _ = _read(_v2(description='a\r\nb\rc\0d\n', name=' I\nda '))
    assert (persona.text, persona.name) == ('a\nb\ncd', 'I da')


def test_without_a_name():
    persona, _ = _read(_v2(name='', personality='calm', description='{{char}} bakes'))
    assert persona.name == ''
    assert persona.text == ("the character bakes\nthe character's personality: calm")


def test_system_prompt_replaces_table_18():
    wrapper = prompts.persona_prompt('Ida is a baker.')
    persona, _ = _read(_v2(system_prompt='Stay {{char}}. {{original}} No {{user}}.'))
    assert persona.system_template == f'Stay Ida. {wrapper} No the user.'
    assert persona.system_prompt == persona.system_template
    # Without {{original}} the persona follows.
    persona, _ = _read(_v2(system_prompt='Stay {{char}}.'))
    assert persona.system_prompt == 'Stay Ida.\n\nIda is a baker.'
    persona, _ = _read(_v2(system_prompt='{{// nothing}}'))
    assert persona.system_template is None
    persona, _ = _read(_v2(system_prompt='{{original}}'))
    assert persona.system_prompt == wrapper


def test_a_persona_is_not_resolved_twice():
    # A name that is a macro goes into P, and P into the system prompt.
    card = _v2(
        name='{{user}}', description='I am {{char}}', system_prompt='{{original}}'
    )
    persona, _ = _read(card)
    assert persona.system_prompt == prompts.persona_prompt('I am {{user}}')


def test_original_belongs_to_the_system_prompt_alone():
    persona, notes = _read(_v2(description='x {{original}} {{odd}}'))
    assert persona.text == 'x {{original}} {{odd}}'
    assert len(notes) == 1
    assert '{{original}} and 1 more' in notes[0]


def test_book_entries_in_order():
    entries = [
        {'content': 'c', 'constant': True, 'insertion_order': 5},
        {'content': 'b', 'constant': True, 'insertion_order': 5.0 - 1e-9},
        {'content': 'd', 'constant': True, 'insertion_order': 5},
        {'content': 'z', 'constant': True, 'insertion_order': 10**400},
        {'content': 'a', 'constant': True, 'insertion_order': 'x'},
        {'content': 'f', 'constant': True, 'position': 'before_char', 'insertion_order': 9},
        {'content': 'no', 'constant': 'maybe'},
        {'content': 'no', 'constant': True, 'enabled': False},
        {'content': '@@dont_activate\nno', 'constant': True},
        {'content': '@@activate\ng', 'insertion_order': 6},
        {'content': '@@a 1\n\n@@b\r\n\n@@@dont_activate\ne @@kept', 'constant': True,
         'insertion_order': 5.5},
        {'content': '@@only', 'constant': True},
        {'content': '{{// hidden }}', 'constant': True},
    ]  # fmt: skip
    want = 'Ida is a baker.\nf\na\nb\nc\nd\ne @@kept\ng\nz'
    assert _read(_v2(character_book={'entries': entries}))[0].text == want
    numbered = {str(number): entry for number, entry in enumerate(entries)}
    assert _read(_v2(character_book={'entries': numbered}))[0].text == want


def test_a_book_is_kept_with_the_words_that_bring_its_entries_up():
    entries = [
        {'keys': ['oven', 'fire'], 'content': "{{char}}'s oven is old."},
        {'keys': [7, '', '{{// x }}', '\ud800', 'geese'], 'content': 'She fears them.'},
        {'keys': 'rye', 'content': '@@depth 3\nRye only.', 'constant': True},
        {'keys': ['{{user}}'], 'content': 'A friend, {{odd}}.', 'enabled': None},
        {'keys': ['gone'], 'content': 'No.', 'enabled': False},
        {'keys': ['/ov.n/i'], 'content': 'No.', 'use_regex': True},
        {'keys': [' '], 'content': 'No.'},
        {'keys': None, 'content': 'No.'},
        {'keys': 5, 'content': 'No.'},
        {'keys': {'a': 'b'}, 'content': 'No.'},
        {'keys': ['empty'], 'content': '@@only'},
        {'content': 'No.'},
    ]
    persona, notes = _read(_v2(character_book={'entries': entries}))
    assert persona.lorebook == (
        persona_lib.LoreEntry('oven', "Ida's oven is old.", False),
        persona_lib.LoreEntry('geese', 'She fears them.', False),
        persona_lib.LoreEntry('rye', 'Rye only.', True),
        persona_lib.LoreEntry('the user', 'A friend, {{odd}}.', False),
    )
    # None of it is part of a prompt but what always is.
    assert persona.text == 'Ida is a baker.\nRye only.'
    assert notes == []
    assert 'oven' not in repr(persona)
    assert _read(_v2())[0].lorebook == ()


@pytest.mark.parametrize(
    ('example', 'want'),
    [
        ('{{char}}: a\n{{user}}: b\n{{char}}: c', ('a', 'c')),
        (
            '<start>{{user}}: b\n<BOT>: a\nmore\n\nof it\n<USER>: b',
            ('a\nmore\n\nof it',),
        ),
        ('Ida: a\nYou: b\nAnon : c\nida : d', ('a', 'd')),
        ('just talk: without labels', ('just talk: without labels',)),
        ('<START>\n<START>\nfree\n<START>\n{{user}}: b', ('free',)),
        ('intro is nobody\n{{char}}: a: b', ('a: b',)),
        ('{{char}}:\n{{user}}: b', ()),
    ],
)
def test_example_messages(example, want):
    assert _read(_v2(mes_example=example))[0].voice_samples == want


@pytest.mark.parametrize(
    ('card', 'parts'),
    [
        (None, ['no character card']),
        ([], ['no character card']),
        ({'spec': 'lorebook_v3', 'data': {'entries': []}}, ['lorebook']),
        (_v2() | {'data': [1]}, ['"data"']),
        (_v2(description=''), ['no description']),
        (_v2(description=' {{// x}} '), ['no description']),
        ({}, ['no description']),
        (_v2(description=['a']), ['"description"', 'a list']),
        (_v2(personality={'a': 1}), ['"personality"', 'an object']),
        (_v2(name=5), ['"name"', 'a number']),
        (_v2(nickname=True), ['"nickname"', 'a boolean']),
        (_v2(description='x \ud800'), ['"description"', 'surrogate']),
        (_v2(system_prompt='x \ud800'), ['"system_prompt"', 'surrogate']),
        (_v2(alternate_greetings=['\udfff']), ['"alternate_greetings"', 'surrogate']),
        (
            _v2(character_book={'entries': [{'content': 'a'}, {'content': 7}]}),
            ['book entry 1', 'a number'],
        ),
    ],
)
def test_unusable_cards(card, parts):
    _refused(card, *parts)


def test_cards_are_told_from_other_json(full_card):
    assert cards.is_card(full_card)
    assert cards.is_card({'description': '', 'first_mes': ''})
    assert cards.is_card({'spec': 'lorebook_v3'})
    assert cards.is_card({'data': {'name': '', 'description': ''}})
    for other in (None, [], 'x', {}, {'name': 'a'}, {'spec': 3}, {'data': [1]}):
        assert not cards.is_card(other)


@pytest.mark.parametrize('as_dict', [False, True])
def test_books_in_the_form_of_sillytavern(as_dict):
    entries = [
        {'key': ['late'], 'content': 'Late.', 'constant': 'true', 'order': 20},
        {'key': ['mill'], 'content': 'Early.', 'constant': 1, 'order': '3'},
        {'content': 'First.', 'constant': True, 'order': 99, 'position': 0},
        {'content': 'OFF', 'constant': True, 'disable': True},
        {'content': 'OFF', 'constant': True, 'disable': 'true', 'enabled': True},
        {'content': 'OFF', 'constant': True, 'enabled': 0},
        {'content': 'OFF', 'constant': True, 'enabled': 'false'},
        {'key': ['waits'], 'content': 'Waits.', 'constant': 'false', 'position': 1},
        {'key': 'oven, stove', 'content': 'Hot.', 'constant': 0, 'disable': False},
    ]
    book = {str(i): entry for i, entry in enumerate(entries)} if as_dict else entries
    persona, _ = _read(_v2(character_book={'entries': book}))
    assert persona.text == 'Ida is a baker.\nFirst.\nEarly.\nLate.'
    assert 'OFF' not in repr(persona)
    assert [(lore.key, lore.in_text) for lore in persona.lorebook] == [
        ('late', True),
        ('mill', True),
        ('waits', False),
        ('oven', False),
    ]


def test_characters_of_other_programs():
    persona, notes = _read(
        {
            'char_name': 'Ida',
            'char_persona': '{{char}} bakes.',
            'char_greeting': 'Mornin.',
            'world_scenario': 'A mill.',
            'example_dialogue': 'You: Hi\nIda: Flour!',
        },
        with_scenario=True,
    )
    assert persona.text == 'Ida bakes.\nScenario: A mill.'
    assert (persona.name, persona.voice_samples) == ('Ida', ('Mornin.', 'Flour!'))
    assert notes == []
    assert cards.is_card({'name': 'Ida', 'context': 'She bakes.', 'greeting': 'Hi'})
    assert not cards.is_card({'instruction': 'x', 'context': 'y', 'response': 'z'})


@pytest.mark.parametrize(
    'fields',
    [
        {'name': 'x' * 4000, 'description': '{{char}}' * 50_000},
        {'name': 'x' * 4000, 'description': '<BOT>' * 80_000},
        {'description': 'y' * 60_000, 'system_prompt': '{{original}}' * 30_000},
        {'name': 'x' * 9000, 'alternate_greetings': ['{{char}}' * 100] * 500},
    ],
)
def test_macros_cannot_make_gigabytes(fields):
    _refused(_v2(**fields), 'its macros make more than 4,194,304 characters')

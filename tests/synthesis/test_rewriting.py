"""What a rewriting model is asked."""

import pytest

from ppjax.data import instructions as instructions_lib
from ppjax.personas import persona as persona_lib
from ppjax.personas import prompts
from ppjax.synthesis import rewriting

_TEXT = 'Bram, a ferryman of few words.'


def _instruction(
    number: int, answer: str = 'Two metres.'
) -> instructions_lib.Instruction:
    return instructions_lib.Instruction(
        f'How deep is {number}?', answer, f'rows:{number}', 'rows'
    )


def test_with_the_reference_it_is_table_20():
    persona = persona_lib.Persona(f' {_TEXT}\n', system_template='Be Bram.')
    rows = [_instruction(1), _instruction(2, 'Three.')]
    first, second = rewriting.requests_for(persona, rows, with_reference=True)
    assert first == rewriting.Request(
        'rows:1',
        'How deep is 1?',
        (
            {
                'role': 'user',
                'content': prompts.rewrite_prompt(
                    _TEXT, 'How deep is 1?', 'Two metres.'
                ),
            },
        ),
        'Two metres.',
    )
    assert (second.query_id, second.reference) == ('rows:2', 'Three.')


@pytest.mark.parametrize('template', [None, 'Be Bram.'])
def test_without_it_the_persona_answers(template):
    persona = persona_lib.Persona(
        _TEXT, system_template=template, voice_samples=('Ay',)
    )
    (request,) = rewriting.requests_for(
        persona, [_instruction(1)], with_reference=False
    )
    assert request.messages == (
        {'role': 'system', 'content': persona.system_prompt},
        {'role': 'user', 'content': 'How deep is 1?'},
    )
    assert request.reference == 'Two metres.'  # No excuse to recite it.


def test_where_there_is_no_reference_the_persona_answers():
    persona = persona_lib.Persona(_TEXT)
    rows = [_instruction(1, ' \n'), _instruction(2)]
    first, second = rewriting.requests_for(persona, rows, with_reference=True)
    assert [message['role'] for message in first.messages] == ['system', 'user']
    assert [message['role'] for message in second.messages] == ['user']


def _prompt(*samples: str) -> str:
    persona = persona_lib.Persona(_TEXT, voice_samples=samples)
    (request,) = rewriting.requests_for(persona, [_instruction(1)], with_reference=True)
    (message,) = request.messages
    return message['content']


def test_voice_samples_follow_the_description():
    text = _prompt(' Mind the {user_question} step. ', '', 'Aye.')
    assert (
        f'### Persona Description:\n{_TEXT}\n\nThis is how the character speaks:\n\n'
        'Mind the {user_question} step.\n\nAye.\n\n### User Question:\nHow deep is 1?'
    ) in text
    assert 'how the character speaks' not in _prompt()
    assert 'how the character speaks' not in _prompt(' ')


def test_voice_samples_are_capped():
    limit = rewriting.VOICE_CHARACTERS
    plain = len(_prompt('x'))
    many = _prompt(*['word ' * 59 + 'end.'] * 500)
    assert many.count('end.') == limit // len('word ' * 59 + 'end.')
    assert len(many) < plain + limit + 50
    # The first is shortened rather than lost, at a word; later ones that fit stay.
    long = _prompt('word ' * 10_000, 'Aye.')
    assert 'word word …\n\n### User' in long
    assert plain + limit - 20 < len(long) < plain + limit + 20
    mixed = _prompt('Aye.', 'word ' * 10_000, 'Nay.')
    assert 'Aye.\n\nNay.\n\n### User' in mixed
    assert len(_prompt('x' * 10_000)) < plain + limit + 20

"""The paper's templates, filled once and never twice."""

from ppjax.personas import persona as persona_lib
from ppjax.personas import prompts

_ODD = 'Kim {question} likes {answer} {persona_description} {{braces}} \\1 %s'


def test_persona_prompt_is_table_18():
    assert prompts.persona_prompt(' Bram. \n') == (
        'You are roleplaying as a user with this persona: Bram.\n'
        'Answer the question, roleplay as the given persona.'
    )


def test_persona_in_undoes_persona_prompt():
    for text in ('Bram.', _ODD, 'two\nlines', 'Answer the question, roleplay'):
        assert prompts.persona_in(prompts.persona_prompt(text)) == text
        assert prompts.persona_in('\n' + prompts.persona_prompt(text) + '\n') == text
    assert prompts.persona_in('Be evil.') is None
    assert prompts.persona_in('') is None
    prompt = prompts.persona_prompt('Bram.')
    assert prompts.persona_in(prompt[:-1]) is None
    assert prompts.persona_in(prompt[1:]) is None
    # Beginning and end may not share characters.
    begin, end = prompts.persona_prompt('\0').split('\0')
    assert prompts.persona_in(begin + end) == ''
    assert prompts.persona_in(begin + end[1:]) is None


def test_judge_prompt_is_table_21_as_it_was_used():
    prompt = prompts.judge_prompt('Bram.', 'Why?', 'So.')
    assert prompt.startswith(
        "You are evaluating whether the model's response convincingly roleplays the "
        'given user persona: Bram.\n\nPrompt:\n[QUESTION START]\nWhy?\n[QUESTION END]\n'
        '\nModel response:\n[ANSWER START]\nSo.\n[ANSWER END]\n\nFocus only on whether '
        'the model’s response is consistent with the persona’s characteristics, '
    )
    assert prompt.endswith(
        '\n\nRespond with a number between 0 and 100. Don’t say anything else, just '
        'the number.'
    )
    template = prompts.judge_template('Bram.')
    assert prompts.fill(template, question='Why?', answer='So.') == prompt


def test_values_are_never_looked_into():
    judged = prompts.judge_prompt(_ODD, 'q {answer}', 'a {question}')
    assert _ODD in judged
    assert '\nq {answer}\n' in judged
    assert '\na {question}\n' in judged
    assert _ODD in prompts.persona_prompt(_ODD)
    rewrite = prompts.rewrite_prompt(_ODD, 'q {user_question}', '{persona_description}')
    assert f'\n{_ODD}\n' in rewrite
    assert '\nq {user_question}\n' in rewrite
    assert '\n{persona_description}\n' in rewrite
    assert 'character {role} {x} in 2' in prompts.role_expansion_prompt('{role} {x}')


def test_the_system_prompt_is_table_18s_unless_the_card_has_its_own():
    plain = persona_lib.Persona('Bram.', name='B', source='x')
    assert plain.system_prompt == prompts.persona_prompt('Bram.')
    own = persona_lib.Persona('Bram.', system_template='Be Bram.')
    assert own.system_prompt == 'Be Bram.'

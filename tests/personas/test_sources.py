"""Personas from text, files, lists, cards and evaluation sets."""

import json
import os
import pathlib

import pytest

from ppjax.base import errors, reading
from ppjax.personas import prompts, sources

_LONG = ' '.join(['word'] * 60)
_CARD = {'name': 'Ida', 'description': '{{char}} bakes for {{user}}.', 'scenario': 'x'}
_SET = {
    'instruction': [{'pos': prompts.persona_prompt('Ida bakes.'), 'neg': ''}],
    'eval_prompt': prompts.judge_template('Ida bakes.'),
    'questions': ['Why?'],
}


def _texts(spec: str, **options) -> list[str]:
    return [persona.text for persona in sources.read_personas(spec, **options)]


def _refused(spec: str, *parts: str, read=sources.read_personas) -> None:
    with pytest.raises(errors.InputError) as caught:
        read(spec)
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert part in message


def test_literal_text():
    (persona,) = sources.read_personas(' Ida bakes.\r\nShe sings. ')
    assert persona.text == 'Ida bakes.\nShe sings.'
    assert persona.name == ''
    assert _texts('Ida\nbakes') == ['Ida\nbakes']
    # A line break makes it a text, whatever it ends in.
    assert _texts('Ida likes\nnotes.md') == ['Ida likes\nnotes.md']


@pytest.mark.parametrize(
    'spec',
    ['ida', 'no/such/file', 'my persona.png', '/x y/Ida.TXT', 'a b.jsonl', 'ida\n'],
)
def test_what_looks_like_a_path_is_no_text(spec):
    _refused(spec, 'There is no file', spec.strip())


@pytest.mark.parametrize('spec', ['', ' ', '\n\t'])
def test_nothing_is_no_persona(spec):
    _refused(spec, 'empty')


def test_literal_surrogates_are_refused():
    _refused('Ida \udcff bakes', 'surrogate')


@pytest.mark.parametrize('name', ['p.txt', 'p.md', 'p', 'p.TXT', 'p.persona'])
def test_text_files(write, name):
    path = write(name, b'\xef\xbb\xbf Ida bakes.\r\n\r\nShe sings \xc3\xb6.\n')
    (persona,) = sources.read_personas(path)
    assert persona.text == 'Ida bakes.\n\nShe sings ö.'
    assert persona.source == path


def test_a_text_file_may_look_like_json(write):
    assert _texts(write('p.txt', '{"persona": "x"}')) == ['{"persona": "x"}']
    assert _texts(write('p', '{"persona": "x"}')) == ['x']


def test_existing_files_win_over_text(write, monkeypatch, tmp_path):
    write('my persona', 'Ida bakes.')
    monkeypatch.chdir(tmp_path)
    assert _texts('my persona') == ['Ida bakes.']


def test_json_lines_of_every_kind(write):
    rows = [
        'Ida bakes.',
        {'persona': ' Bo sails. '},
        {'name': ' Cy\nX', 'persona': 'Cy counts.', 'other': 1},
        {'input persona': 'Di digs.', 'synthesized text': 'no', 'description': 'math'},
        {'persona_description': 'Ed edits.'},
        _CARD,
        _SET,
    ]
    text = '\ufeff' + '\n\n'.join(json.dumps(row) for row in rows) + '\n'
    personas = sources.read_personas(write('p.jsonl', text))
    assert [persona.text for persona in personas] == [
        'Ida bakes.',
        'Bo sails.',
        'Cy counts.',
        'Di digs.',
        'Ed edits.',
        'Ida bakes for the user.',
        'Ida bakes.',
    ]
    assert [persona.name for persona in personas] == ['', '', 'Cy X', '', '', 'Ida', '']
    assert personas[2].source.startswith(str(write('p.jsonl', text)) + ':5')
    # The same lines under another ending, and as one list.
    assert _texts(write('p.json', text)) == [persona.text for persona in personas]
    assert _texts(write('q.json', rows)) == [persona.text for persona in personas]
    assert _texts(write('r.json', 'Ida bakes.'.join('""'))) == ['Ida bakes.']


def test_cards_in_every_container(write, card_bytes):
    body = json.dumps(_CARD).encode()
    png = card_bytes.png(card_bytes.text_chunk(card_bytes.payload(_CARD)))
    charx = card_bytes.charx({'card.json': body})
    files = {
        'a.json': body,
        'a.png': png,
        'b.apng': png,
        'c.charx': charx,
        'd.jpg': png,  # The content counts.
        'e': charx,
    }
    for name, data in files.items():
        path = write(name, data)
        (persona,) = sources.read_personas(path, user_name='Bo', with_scenario=True)
        assert persona.text == 'Ida bakes for Bo.\nScenario: x'
        assert persona.name == 'Ida'
        assert persona.source == path


def test_notes_of_cards_come_through(write):
    notes: list[str] = []
    path = write('a.json', _CARD | {'description': f'{{{{odd}}}} {_LONG}'})
    sources.read_personas(path, notes=notes.append)
    assert len(notes) == 1
    assert '{{odd}}' in notes[0]


@pytest.mark.parametrize(
    ('row', 'part'),
    [
        ('{"persona": ', 'invalid JSON'),
        ('plain text', 'invalid JSON'),
        ('[' * 100_000, 'nested too deep'),
        ('""', 'empty'),
        ('" \\n"', 'empty'),
        ('"\\ud800 x"', 'surrogate'),
        ('{"persona": ""}', 'empty'),
        ('{"persona": null}', 'no text'),
        ('{"persona": ["x"]}', 'no text'),
        ('{"persona": "x", "name": 7}', 'no text'),
        ('{"persona": "x", "name": "\\ud800"}', 'no text'),
        ('{}', 'no persona'),
        ('{"text": "x"}', 'no persona'),
        ('null', 'no persona'),
        ('7', 'no persona'),
        ('["x"]', 'no persona'),
        ('{"name": "x", "description": ""}', 'no description'),
        ('{"questions": ["x"], "instruction": "Be evil."}', 'no persona'),
    ],
)
def test_bad_rows_are_named_by_line(write, row, part):
    path = write('p.jsonl', f'"Ida bakes."\n\n{row}\n"Bo sails."\n')
    _refused(path, f'{path}:3', part)


def test_bad_items_are_named_by_number(write):
    path = write('p.json', ['Ida bakes.', {'persona': ''}])
    _refused(path, f'{path}: item 1', 'empty')


def test_unusable_files(write, tmp_path):
    _refused(str(tmp_path), 'folder')
    _refused(write('p.txt', ''), 'empty')
    _refused(write('p.txt', b'\xff\xfeI\0'), 'UTF-8')
    _refused(write('p', b'Ida\0 bakes'), 'NUL')
    _refused(write('p.jsonl', '\n \n'), 'no personas')
    _refused(write('p.json', '[]'), 'no personas')
    _refused(write('p.json', ''), 'invalid JSON')
    _refused(write('p.json', '{"a":\n1'), 'invalid JSON')
    _refused(write('p.png', 'Ida bakes.'), 'no PNG file')
    _refused(write('p.webp', b'RIFF\x10\0\0\0WEBPVP8 '), 'WebP', 'convert')
    os.mkfifo(tmp_path / 'pipe')
    _refused(str(tmp_path / 'pipe'), 'no regular file')
    _refused('/dev/null', 'no regular file')


def test_files_too_large_are_refused(tmp_path):
    path = tmp_path / 'p.txt'
    with path.open('wb') as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)
    _refused(str(path), 'larger than 64 MiB')


def test_file_names_with_line_breaks_stay_in_one_line(write):
    _refused(write('a\nb.txt', ''), 'a\\nb.txt')
    _refused(write('a\nb.jsonl', '{'), 'a\\nb.jsonl')
    _refused(write('a\nb.png', b'\x89PNG\r\n\x1a\n'), 'a\\nb.png')


def test_one_persona_is_wanted(write):
    path = write('p.jsonl', '"Ida bakes."\n')
    assert sources.read_persona(path).text == 'Ida bakes.'
    rows = [{'persona': f'Person {i} bakes.'} for i in range(10)]
    rows[1]['name'] = 'Bo\nX'
    path = write('p.json', rows)
    _refused(
        path,
        path,
        'holds 10 personas, wanted one',
        '(1) Person 0 bakes.',
        '(2) Bo X;',
        'and 2 more',
        read=sources.read_persona,
    )


@pytest.mark.parametrize(
    ('words', 'said'), [(39, True), (40, False), (400, False), (401, True)]
)
def test_odd_lengths_are_noted(words, said):
    notes: list[str] = []
    sources.read_persona(' '.join(['word'] * words), notes=notes.append)
    assert len(notes) == said
    if said:
        assert f'{words} words' in notes[0]
        assert '40 and 400' in notes[0]


def test_many_odd_lengths_are_one_note(write):
    path = write('p.json', [_LONG, 'a b', _LONG, 'c', 'd'])
    notes: list[str] = []
    sources.read_personas(path, notes=notes.append)
    assert len(notes) == 1
    assert f'{path}: item 1: the persona has 2 words, and 2 more' in notes[0]


def test_the_papers_reference_personas():
    folder = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'personas'
    path = folder / 'reference_personas_10.jsonl'
    if not path.exists():
        pytest.skip("the paper's reference personas are not here")
    notes: list[str] = []
    texts = _texts(str(path), notes=notes.append)
    assert texts == [json.loads(line) for line in path.read_text().splitlines()]
    assert len(texts) == 10
    assert notes == []


def test_the_papers_evaluation_sets_are_personas(eval_set_files):
    for path in eval_set_files:
        value = json.loads(path.read_text())
        persona = sources.read_persona(str(path))
        assert persona.text == value['persona_description']
        assert persona.system_prompt == value['system_prompt'].strip()

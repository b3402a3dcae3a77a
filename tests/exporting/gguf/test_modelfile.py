"""Modelfiles, read by the rules of Ollama's parser."""

from collections.abc import Callable
import dataclasses
import pathlib

import pytest

from ppjax.exporting.gguf import metadata, modelfile
from ppjax.models import base_model

_ORIGIN = metadata.Origin(
    'owner/Base-1B', 'Bram', {'license': 'mit'}, 'You are Bram.', {}, 'Ahoy, you!'
)


def _read(text: str) -> list[tuple[str, str]]:
    """Commands with their values, as Ollama's parser finds them.

    A value that begins with three quotation marks goes on, at every space, until what
    there is so far also ends with three; any other ends with its line.
    """
    found = []
    rest = text
    while rest := rest.lstrip():
        if rest.startswith('#'):
            _, _, rest = rest.partition('\n')
            continue
        command, _, rest = rest.partition(' ')
        if command in ('PARAMETER', 'MESSAGE'):
            key, _, rest = rest.partition(' ')
            command = f'{command} {key}'
        if not rest.startswith('"""'):
            value, _, rest = rest.partition('\n')
            found.append((command, value.removeprefix('"').removesuffix('"')))
            continue
        ends = (
            i
            for i, c in enumerate(rest)
            if c.isspace() and i >= 6 and rest[:i].endswith('"""')
        )
        end = next(ends)
        found.append((command, rest[3 : end - 3]))
        rest = rest[end:]
    return found


def _modelfile(model: base_model.BaseModel, **changes: object) -> list[tuple[str, str]]:
    origin = dataclasses.replace(_ORIGIN, **changes)
    files = ['a-F16.gguf', 'a-Q8_0.gguf']
    text = modelfile.render(origin, model, files, ['<end>'], name='Modelfile')
    assert 'TEMPLATE' not in text.replace(origin.system_prompt, '')
    return _read(text)


def test_all_that_it_says(tiny_chat: Callable[[str], base_model.BaseModel]) -> None:
    assert _modelfile(tiny_chat('llama')) == [
        ('FROM', './a-F16.gguf'),
        ('SYSTEM', 'You are Bram.'),
        ('PARAMETER stop', '<end>'),
        ('PARAMETER num_ctx', '512'),
        ('MESSAGE assistant', 'Ahoy, you!'),
        ('LICENSE', 'mit'),
    ]
    assert modelfile.ollama_name(_ORIGIN) == 'bram'


def test_another_models_stays(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    ann = dataclasses.replace(_ORIGIN, persona='Ann')
    for origin, name in ((_ORIGIN, 'Modelfile'), (ann, 'Modelfile-Base-1B-Ann')) * 2:
        assert modelfile.name_in(tmp_path, origin) == name
        text = modelfile.render(
            origin, tiny_chat('llama'), [f'{origin.name}-F16.gguf'], [], name=name
        )
        assert f'-f {name}\n' in text
        (tmp_path / name).write_text(text)


def test_what_is_not_known_is_not_said(
    tiny_chat: Callable[[str], base_model.BaseModel],
) -> None:
    found = _modelfile(tiny_chat('llama'), system_prompt='', greeting='', license={})
    assert [command for command, _ in found] == [
        'FROM',
        'PARAMETER stop',
        'PARAMETER num_ctx',
    ]


@pytest.mark.parametrize(
    'prompt',
    [
        'One\n\nTWO "three"\n# no comment\nFROM x\nPARAMETER stop y',
        '"Quoted."',
        'He says ""',
        '"',
        ' spaces around ',
        '{{ .System }} \\n \\" {%',
    ],
)
def test_prompts_arrive_as_they_are(
    tiny_chat: Callable[[str], base_model.BaseModel], prompt: str
) -> None:
    found = _modelfile(tiny_chat('llama'), system_prompt=prompt, greeting=prompt)
    assert ('SYSTEM', prompt) in found
    assert ('MESSAGE assistant', prompt) in found
    assert len(found) == 6


def test_three_quotation_marks_have_no_spelling(
    tiny_chat: Callable[[str], base_model.BaseModel],
) -> None:
    found = _modelfile(tiny_chat('llama'), system_prompt='a """ b """\nLICENSE evil')
    assert ('SYSTEM', "a ''' b '''\nLICENSE evil") in found
    assert len(found) == 6


def test_texts_of_licences_come_along(
    model_folder: Callable[[str], pathlib.Path],
) -> None:
    folder = model_folder('qwen2')
    (folder / 'LICENSE').write_text('Do as you like.\nOr not.')
    (folder / 'NOTICE.txt').write_text('By us.')
    found = _modelfile(base_model.open_base_model(str(folder)))
    assert [value for command, value in found if command == 'LICENSE'] == [
        'Do as you like.\nOr not.',
        'By us.',
    ]

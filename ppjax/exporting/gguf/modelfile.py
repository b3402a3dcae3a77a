"""The Modelfile that makes a GGUF file one of Ollama's models.

It has no TEMPLATE: Ollama reads the chat template that the file itself carries, and a
Go template of ours would have to say the same token for token.

Source: Ollama's docs/modelfile.md; a text between triple quotes ends at the next three.
"""

from collections.abc import Sequence
import pathlib

from ppjax.exporting.gguf import metadata
from ppjax.models import base_model

_NAME = 'Modelfile'
# Memory grows with it, and roleplay fits; models have up to 131,072.
_CONTEXT = 4096
_MAX_LICENSE = 1 << 16
_LICENSE_FILES = ('LICENSE*', 'NOTICE*', 'USE_POLICY*')


def name_in(folder: pathlib.Path, origin: metadata.Origin) -> str:
    """What a model's Modelfile is called in a folder.

    Another model's stays what it is.
    """
    there = folder / _NAME
    if not there.is_file():
        return _NAME
    own = f'\nFROM ./{origin.name}-'
    if own in there.read_text('utf-8', 'replace'):
        return _NAME
    return f'{_NAME}-{origin.name}'


def render(
    origin: metadata.Origin,
    model: base_model.BaseModel,
    files: Sequence[str],
    stops: Sequence[str],
    *,
    name: str,
) -> str:
    """The text of a Modelfile.

    Args:
        origin: of the model.
        model: its constants, and where its licence is.
        files: names of the GGUF files beside it; the first is taken.
        stops: texts of the tokens that end an answer.
        name: of the Modelfile.
    """
    first, *others = files
    lines = [
        f'# ollama create {ollama_name(origin)} -f {name}',
        f'FROM ./{first}',
        *(f'# FROM ./{other}' for other in others),
    ]
    if origin.system_prompt:
        lines.append(f'SYSTEM {_quoted(origin.system_prompt)}')
    lines += [f'PARAMETER stop {_quoted(stop)}' for stop in stops]
    lines.append(f'PARAMETER num_ctx {min(_CONTEXT, model.config.max_position)}')
    if origin.greeting:
        lines.append(f'MESSAGE assistant {_quoted(origin.greeting)}')
    lines += [f'LICENSE {_quoted(text)}' for text in _licenses(origin, model)]
    return '\n'.join(lines) + '\n'


def ollama_name(origin: metadata.Origin) -> str:
    """What the model may be called in Ollama: no capitals."""
    return (origin.persona or origin.name).lower()


def _quoted(text: str) -> str:
    """A text as a Modelfile has it.

    Nothing stands for three quotation marks within: a text that has them gets
    apostrophes in their place.
    """
    if len(text.split()) == 1 and '"' not in text and text == text.strip():
        return f'"{text}"'
    apart = text.replace('"""', "'''")
    return f'"""{apart}"""'


def _licenses(origin: metadata.Origin, model: base_model.BaseModel) -> list[str]:
    """The texts that come with a model, or else the licence's name."""
    folder = model.reader.path
    texts = []
    for pattern in _LICENSE_FILES if folder.is_dir() else ():
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and file.stat().st_size <= _MAX_LICENSE:
                texts.append(file.read_text('utf-8', 'replace'))
    if texts:
        return texts
    named = origin.license.get('license_name') or origin.license.get('license')
    listed = named if isinstance(named, list) else [named]
    return [pathlib.PurePath(x).name for x in listed if isinstance(x, str) and x]

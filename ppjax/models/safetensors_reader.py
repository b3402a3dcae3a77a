"""Reading a Hugging Face directory: config.json and safetensors."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ppjax.base import errors, json_lines, reading
from ppjax.models import checkpoint

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_DTYPES = {
    'F64': np.dtype(np.float64),
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    # NumPy knows bfloat16 only once ml_dtypes is imported.
    'BF16': np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsReader(checkpoint.CheckpointReader):
    """One file or an index with shards; bytes are read when asked for."""

    def __init__(self, path: pathlib.Path):
        """Reads the headers.

        Raises:
            InputError: if config.json, the weights or a shard is missing, or a
                file is truncated.
        """
        self.path = path
        self.hf_config = json_lines.read_object(path / 'config.json')
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        if self._is_single():
            for name in self._open(_SINGLE).keys():
                self._where[name] = _SINGLE
        elif (path / _INDEX).exists():
            self._open_shards(json_lines.read_object(path / _INDEX))
        else:
            raise errors.InputError(
                f'{path} holds neither {_SINGLE} nor {_INDEX}; '
                'pickled weights (.bin, .pt) are not read.'
            )

    def _is_single(self) -> bool:
        """Whether one file is the model, whatever an index beside it says.

        transformers takes the single file. We do so too, unless it lacks tensors that
        the index finds in shards: transformers would invent them.
        """
        if not (self.path / _SINGLE).exists():
            return False
        try:
            where = json_lines.read_object(self.path / _INDEX).get('weight_map')
        except errors.InputError:
            return True
        if not isinstance(where, dict) or where.keys() <= set(
            self._open(_SINGLE).keys()
        ):
            return True
        return not all(
            isinstance(file, str) and (self.path / file).exists()
            for file in where.values()
        )

    def _open_shards(self, index: dict[str, Any]) -> None:
        where = index.get('weight_map')
        if not isinstance(where, dict) or not where:
            raise errors.InputError(f'{self.path / _INDEX} has no weight_map.')
        for name, file in where.items():
            # A shard's name comes from a downloaded file: it must stay inside.
            named = isinstance(file, str) and file not in ('', '..')
            if not named or pathlib.Path(file).name != file:
                raise errors.InputError(
                    f'{self.path / _INDEX}: {file!r} is not a file name.'
                )
            if file not in self._files and not (self.path / file).exists():
                raise errors.InputError(
                    f'{self.path / file} is named in {_INDEX} but does not exist; '
                    'download it again.'
                )
            if name not in self._open(file).keys():
                raise errors.InputError(
                    f'{self.path / file} lacks tensor {name!r}, which {_INDEX} '
                    'says it holds.'
                )
            self._where[name] = file

    def _open(self, file: str) -> Any:
        if file not in self._files:
            reading.require_file(self.path / file, 'Weights file')
            try:
                self._files[file] = safetensors.safe_open(
                    self.path / file, framework='np'
                )
            except (safetensors.SafetensorError, OSError) as error:
                raise errors.InputError(
                    f'{self.path / file} is damaged or truncated ({error}); '
                    'download it again.'
                ) from None
        return self._files[file]

    def _slice(self, name: str) -> Any:
        if name not in self._where:
            raise errors.InputError(f'{self.path}: tensor {name!r} is missing.')
        return self._open(self._where[name]).get_slice(name)

    def names(self) -> list[str]:
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        kind = self._slice(name).get_dtype()
        if kind not in _DTYPES:
            raise errors.InputError(
                f'{self.path}: tensor {name!r} is stored as {kind}, quantised; give the '
                'original in bfloat16, float16 or float32, or a GGUF file.'
            )
        return _DTYPES[kind]

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape(name)[0])
        values = self._slice(name)[start:stop]
        return checkpoint.refuse_not_finite(self.path, name, values)

"""The pruned model with the rows of `down_proj` that were refitted, read from files.

One file a layer, so that a run goes on with the layer after the last one that is there,
and an export reads no more than it writes.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from ppjax.base import atomic, errors
from ppjax.models import base_model, biased, checkpoint, loading

_ROWS, _BIAS = 'rows', 'bias'
_ROWS_OF, _BIAS_OF = (
    loading.BLOCK_WEIGHTS[name].hf_name for name in ('w_down', 'b_down')
)


@dataclasses.dataclass(frozen=True)
class LayerFiles:
    """Where the refitted rows of a run are, until they are exported.

    Attributes:
        folder: of the files.
    """

    folder: pathlib.Path

    def path(self, layer: int) -> pathlib.Path:
        """Of a layer, counted from 0."""
        return self.folder / f'layer-{layer:04d}.safetensors'

    def write(
        self,
        layer: int,
        rows: np.ndarray,
        bias: np.ndarray | None,
        facts: dict[str, float],
    ) -> None:
        """Writes rows [D, k], as checkpoints hold them, and bias [D] as float32.

        Args:
            layer: counted from 0.
            rows: the weight.
            bias: or None.
            facts: how they were made.

        Raises:
            DiskError: if the disk is full or cannot be written.
        """
        tensors = {_ROWS: np.ascontiguousarray(rows, np.float32)}
        if bias is not None:
            tensors[_BIAS] = np.ascontiguousarray(bias, np.float32)
        content = safetensors_numpy.save(tensors, {'facts': json.dumps(facts)})
        with atomic.file(self.path(layer)) as temporary:
            temporary.write_bytes(content)

    def facts(self, layer: int) -> dict[str, float] | None:
        """How a layer's rows were made; None if they are not there, or damaged."""
        if not self.path(layer).is_file():
            return None
        try:
            with safetensors.safe_open(self.path(layer), framework='np') as handle:
                # Before layers could be left as they were, all were refitted.
                return {'refitted': 1.0} | json.loads(handle.metadata()['facts'])
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None

    def slice(self, layer: int, name: str) -> Any:
        """One tensor, to be read in parts.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            handle = safetensors.safe_open(self.path(layer), framework='np')
            return handle.get_slice(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise errors.InputError(
                f'{self.path(layer)} cannot be read ({error}); remove it, and the same '
                'command fits this layer again.'
            ) from None


class _RefittedReader(checkpoint.CheckpointReader):
    """Another reader's tensors, but for those of refitted layers."""

    def __init__(self, reader: checkpoint.CheckpointReader, files: dict[str, Any]):
        """Args:
        reader: of the pruned model.
        files: tensor name -> what `LayerFiles.slice` is called with, and the files.
        """
        self.path, self.hf_config = reader.path, reader.hf_config
        self._reader, self._files = reader, files

    def names(self) -> list[str]:
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.shape(name)

    def dtype(self, name: str) -> np.dtype:
        own = name in self._files
        return np.dtype(np.float32) if own else self._reader.dtype(name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        if name not in self._files:
            return self._reader.read(name, rows)
        start, stop, _ = rows.indices(self.shape(name)[0])
        return self._files[name]()[start:stop]


def refitted_model(
    pruned: base_model.BaseModel, files: LayerFiles, *, biased: bool
) -> base_model.BaseModel:
    """The pruned model with the rows that lie in files, which may come later.

    Args:
        pruned: with biases, if they are fitted.
        files: of the layers.
        biased: whether biases are.
    """
    own: dict[str, Any] = {}
    for layer in range(pruned.config.num_layers):
        own[_ROWS_OF.format(layer)] = functools.partial(files.slice, layer, _ROWS)
        if biased:
            own[_BIAS_OF.format(layer)] = functools.partial(files.slice, layer, _BIAS)
    reader = _RefittedReader(pruned.reader, own)
    return dataclasses.replace(pruned, reader=reader)


def with_biases(pruned: base_model.BaseModel) -> base_model.BaseModel:
    """A model whose FFN layers can hold biases, 0 where it had none.

    Raises:
        InputError: if its architecture has no such biases.
    """
    cfg = pruned.config
    if not biased.has_room(pruned):
        raise errors.InputError(
            f'--bias: no stock {cfg.family} model has a bias in down_proj, so nothing '
            'would load the export; leave it out.'
        )
    if cfg.mlp_bias:
        return pruned
    widths = {'b_gate': cfg.d_ff, 'b_up': cfg.d_ff, 'b_down': cfg.d_model}
    zeros = {
        loading.BLOCK_WEIGHTS[name].hf_name.format(layer): np.zeros(width, np.float32)
        for layer in range(cfg.num_layers)
        for name, width in widths.items()
    }
    return biased.with_added(pruned, zeros, dataclasses.replace(cfg, mlp_bias=True))

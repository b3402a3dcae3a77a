"""Both models, layer by layer: their streams wait on the host between layers.

Of weights one layer of either model is in memory at a time, and the embedding at the
start.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.compensation import config as config_lib
from ppjax.compensation import layer_fit, paths, refitted
from ppjax.compensation import texts as texts_lib
from ppjax.models import base_model, loading, sliced, weights
from ppjax.models import config as model_config
from ppjax.models import decoder as decoder_lib


class Layers:
    """Goes through the layers, from the first to the last, fitting or only running."""

    def __init__(
        self,
        cfg: config_lib.CompensateConfig,
        dense: base_model.BaseModel,
        pruned: base_model.BaseModel,
        texts: texts_lib.Texts,
        files: refitted.LayerFiles,
        mesh: jax.sharding.Mesh,
        between: Callable[[], None],
    ):
        """Args:
        cfg: the settings.
        dense: the dense model.
        pruned: what a mask keeps of it, with biases if they are fitted.
        texts: that both are run on.
        files: where refitted rows are, and go.
        mesh: the devices.
        between: called before every batch; what it raises ends all.
        """
        self._cfg, self._files, self._mesh = cfg, files, mesh
        self._dense, self._pruned = dense, pruned
        self._refitted = refitted.refitted_model(pruned, files, biased=cfg.bias)
        self._texts, self._between = texts, between
        self._halfway = paths.make_halfway(texts.shape, cfg.target, mesh)
        self._feed = paths.make_feed(mesh)
        self._streams: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def total(self) -> int:
        """How many layers there are."""
        return self._dense.config.num_layers

    def memory(self) -> tuple[int, int]:
        """Bytes on the host: of both streams, and of one layer's sums at their peak."""
        cfg, width = self._pruned.config, jnp.dtype(self._cfg.dtype).itemsize
        size = cfg.d_ff + self._cfg.bias
        # G and its factor; C, a solution, and what it is made in; a change to try for
        # each damping.
        rows = size * cfg.d_model
        sums = 16 * size**2 + 24 * rows + 4 * rows * len(self._cfg.dampings())
        return 2 * self._texts.tokens * cfg.d_model * width, sums

    def start(self) -> None:
        """Looks up the tokens, which both streams begin with."""
        like = weights.abstract(self._dense.config, jnp.dtype(self._cfg.dtype))
        own = {'embedding': like['embedding']}
        found = loading.load_weights(self._dense.reader, own, mesh=self._mesh)
        start = paths.make_start(self._mesh)
        for batch in self._texts.batches:
            self._between()
            x = processes.fetch(start(found['embedding'], batch.rows.tokens))
            self._streams.append((x, x))

    def _read(
        self, model: base_model.BaseModel, layer: int, *names: str
    ) -> tuple[model_config.ModelConfig, weights.Weights]:
        """Some of a layer's weights, or all, with the constants of that layer alone."""
        one = sliced.without_blocks(model, [layer])
        like = weights.abstract(one.config, jnp.dtype(self._cfg.dtype))['blocks']
        own = {name: x for name, x in like.items() if not names or name in names}
        found = loading.load_weights(one.reader, {'blocks': own}, mesh=self._mesh)
        return one.config, found['blocks']

    def run(self, layer: int) -> dict[str, float]:
        """Runs one layer, counted from 0, and fits it if that was not done before.

        Returns:
            How it was fitted; see `LayerFit.finish`.

        Raises:
            InputError: if something is not finite, or the disk is full.
        """
        dense = weights.block_of(*self._read(self._dense, layer))
        cfg, own = self._read(self._pruned, layer)
        block = weights.block_of(cfg, own)
        facts = self._files.facts(layer)
        fitting = None if facts is not None else self._fit(layer, block)
        for number, batch in enumerate(self._texts.batches):
            self._between()
            halfway = self._halfway(dense, block, (batch.rows, self._streams[number]))
            if fitting is not None:
                fitting.add(batch, halfway)
            self._streams[number] = (
                processes.fetch(halfway.dense),
                processes.fetch(halfway.pruned),
            )
        del dense
        if fitting is not None:
            change, facts = fitting.finish()
            self._write(layer, change, facts)
        assert facts is not None
        if layer + 1 < self.total:
            _, rows = self._read(self._refitted, layer, 'w_down', 'b_down')
            block = weights.block_of(cfg, own | rows)
            for number, (x, y) in enumerate(self._streams):
                self._between()
                self._streams[number] = (x, processes.fetch(self._feed(block, y)))
        return facts

    def _fit(self, layer: int, block: decoder_lib.DecoderBlock) -> layer_fit.LayerFit:
        return layer_fit.LayerFit(
            layer + 1,
            block,
            self._texts.shape,
            self._cfg.dampings(),
            biased=self._cfg.bias,
            mesh=self._mesh,
        )

    def _write(self, layer: int, change: np.ndarray, facts: dict[str, float]) -> None:
        def before(name: str) -> np.ndarray:
            hf_name = loading.BLOCK_WEIGHTS[name].hf_name.format(layer)
            return self._pruned.reader.read(hf_name).astype(np.float32)

        bias = None
        if self._cfg.bias:
            change, own = change[:-1], change[-1]
            bias = before('b_down') + own

        def write() -> None:
            self._files.write(layer, before('w_down') + change.T, bias, facts)

        # The others wait, and then read what it wrote.
        processes.first_decides(write)

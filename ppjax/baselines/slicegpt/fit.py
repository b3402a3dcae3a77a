"""SliceGPT: the residual stream, site by site, in few of its principal directions.

With the norms' weights in the matrices that read them, a norm commutes with a rotation
Q. Each site's stream is rotated to its principal directions and cut to the first W;
between two sites it is taken from one's to the other's.

Source: SliceGPT, Ashkboos et al., arXiv:2401.15024, sections 3.2 to 3.4.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import processes
from ppjax.base import progress as progress_lib
from ppjax.baselines import batches as batches_lib
from ppjax.baselines import walk as walk_lib
from ppjax.baselines.slicegpt import pca
from ppjax.data import packing
from ppjax.models import base_model, loading, products, sliced, weights
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.parallel import execution

# Weights by their names in `RotatedDecoder`, float64 [in, out] of one layer.
Layer = dict[str, np.ndarray]

# Of a block's matrices, the norm in front of them; the others write to the stream.
READS = {
    'w_q': 'attn_norm',
    'w_k': 'attn_norm',
    'w_v': 'attn_norm',
    'w_gate': 'ffn_norm',
    'w_up': 'ffn_norm',
}


def folded(layer: Layer) -> Layer:
    """A layer with its norms' weights in the matrices that read them."""
    found = {name: x for name, x in layer.items() if name not in READS.values()}
    for name, norm in READS.items():
        found[name] = layer[norm][:, None] * layer[name]
    return found


def rotated_layer(
    layer: Layer, before: np.ndarray, middle: np.ndarray, after: np.ndarray
) -> Layer:
    """A folded layer between three sites' directions.

    Args:
        layer: from `folded`.
        before: Q of the stream that it reads, [D, W].
        middle: of the stream between its halves, [D, W].
        after: of the stream that it puts out, [D, W], or [D, D] of the last layer.
    """
    found = dict(layer)
    for name in ('w_q', 'w_k', 'w_v'):
        found[name] = before.T @ layer[name]
    for name in ('w_gate', 'w_up'):
        found[name] = middle.T @ layer[name]
    for name, bias, sites in (('w_o', 'b_o', middle), ('w_down', 'b_down', after)):
        found[name] = layer[name] @ sites
        if bias in layer:
            found[bias] = layer[bias] @ sites
    found['turn_attention'] = before.T @ middle
    found['turn_ffn'] = middle.T @ after
    return found


@functools.cache
def _make_passes(
    shape: packing.PackedShape, mesh: jax.sharding.Mesh | None
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Builds (attend, feed, gram): the halves of a block from narrow streams, whole.

    attend(block, rows, x [B, T, D], directions [D, W]) and feed(block, x, directions)
    give [B, T, D] in the model's own directions, of what is left of x in those W;
    gram(x, rows, normed) is sum x x^T of its tokens.
    """

    def attend(
        block: decoder_lib.DecoderBlock,
        rows: packing.PackedBatch,
        x: jax.Array,
        own: jax.Array,
    ) -> jax.Array:
        x = products.product('btd,dw->btw', x, own)
        normed = decoder_lib.rms_norm(x, block.attn_norm[...], block.cfg.norm_eps)
        found, _ = block.attention(
            normed,
            walk_lib.rope_of(block, rows.positions),
            shape.attend(rows.segments),
            None,
            {},
        )
        return products.product('btw,dw->btd', x, own) + found

    def feed(
        block: decoder_lib.DecoderBlock, x: jax.Array, own: jax.Array
    ) -> jax.Array:
        x = products.product('btd,dw->btw', x, own)
        normed = decoder_lib.rms_norm(x, block.ffn_norm[...], block.cfg.norm_eps)
        return products.product('btw,dw->btd', x, own) + block.ffn(normed, None, {})[0]

    def gram(x: jax.Array, rows: packing.PackedBatch, normed: bool) -> jax.Array:
        size = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))
        x = jnp.where(normed, x / jnp.maximum(size, 1e-30), x)
        real = jnp.where(rows.segments[..., None] > 0, x, 0)
        return products.product('btd,bte->de', real, real, jnp.float32)

    def over(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function)
        return lambda *args: execution.call(mesh, compiled, *args)

    return over(attend), over(feed), over(gram)


class Reader:
    """A model's weights, one layer at a time, float64 and folded."""

    def __init__(self, base: base_model.BaseModel):
        self._base = base

    def _read(self, model: base_model.BaseModel, like: Any) -> weights.Weights:
        return loading.load_weights(model.reader, like)

    def layer(self, number: int) -> Layer:
        """The weights of one block, counted from 0."""
        one = sliced.without_blocks(self._base, [number])
        like = {'blocks': weights.abstract(one.config)['blocks']}
        found = self._read(one, like)['blocks']
        return folded({name: np.asarray(x[0], np.float64) for name, x in found.items()})

    def top(self) -> dict[str, np.ndarray]:
        """(Embedding [V, D], unembedding [V, D] with the final norm's weights in it)."""
        like = weights.abstract(self._base.config)
        found = self._read(
            self._base, {name: x for name, x in like.items() if name != 'blocks'}
        )
        own = {name: np.asarray(x, np.float64) for name, x in found.items()}
        head = own.get('head', own['embedding'])
        return {'embedding': own['embedding'], 'head': head * own['final_norm']}


def block_of(
    cfg: config_lib.ModelConfig, layer: Layer, width: int
) -> decoder_lib.DecoderBlock:
    """A block of float32 weights that reads a stream of `width`.

    What it writes may be of another width: its products ask for none.
    """
    narrow = config_lib.narrowed(cfg, width)
    norm = norm_weights(cfg, width)
    whole = layer | {'attn_norm': norm, 'ffn_norm': norm}
    names = weights.abstract(narrow)['blocks']
    return weights.block_of(
        narrow,
        {name: jnp.asarray(whole[name][None], jnp.float32) for name in names},
    )


def norm_weights(cfg: config_lib.ModelConfig, width: int) -> np.ndarray:
    """Of a norm over `width` entries that divides by the root of sum x^2 / D + eps."""
    return np.full(width, (width / cfg.d_model) ** -0.5)


@dataclasses.dataclass(frozen=True)
class Sliced:
    """A rotated and cut model.

    Attributes:
        width: W.
        embedding: float32 [V, W].
        head: float32, [V, D], or [V, W] where one rotation serves all sites.
        is_single: whether it does.
        layers: from `rotated_layer`, float32; the last writes as much as the head
            reads.
        carried: of each site, what share of the stream's energy its W directions have.
    """

    width: int
    embedding: np.ndarray
    head: np.ndarray
    is_single: bool
    layers: list[Layer]
    carried: list[float]


class Walk:
    """Texts on their way through the layers of a model, and what is found of them."""

    def __init__(
        self,
        base: base_model.BaseModel,
        batches: batches_lib.Batches,
        *,
        centred: bool,
        mesh: jax.sharding.Mesh | None,
    ):
        """See `fit`."""
        self.reader, self._batches = Reader(base), batches
        self._attend, self._feed, self._gram = _make_passes(batches.shape, mesh)
        self.top = self.reader.top()
        if centred:
            table = self.top['embedding']
            self.top['embedding'] = table - table.mean(axis=1, keepdims=True)
        self._cfg = base.config
        on_device = jnp.asarray(self.top['embedding'], jnp.float32)
        self.streams = [
            products.looked_up(on_device, jnp.asarray(rows.tokens))
            for rows in batches.rows
        ]

    def covariance(self, *, normed: bool = False) -> pca.Covariance:
        """Of the streams as they are, or of each token's stream over its size."""
        found = pca.Covariance.empty(self._cfg.d_model)
        for rows, x in zip(self._batches.rows, self.streams, strict=True):
            part = self._gram(x, rows, normed)
            found.add(np.asarray(processes.fetch(part), np.float64))
        return found

    def attend(self, block: decoder_lib.DecoderBlock, own: np.ndarray) -> None:
        """Takes the streams through the first half of a block, in some directions."""
        self.streams = [
            self._attend(block, rows, x, jnp.asarray(own, jnp.float32))
            for rows, x in zip(self._batches.rows, self.streams, strict=True)
        ]

    def feed(self, block: decoder_lib.DecoderBlock, own: np.ndarray) -> None:
        """And through the second."""
        self.streams = [
            self._feed(block, x, jnp.asarray(own, jnp.float32)) for x in self.streams
        ]


def fit(
    base: base_model.BaseModel,
    batches: batches_lib.Batches,
    width: int,
    *,
    centred: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Sliced:
    """Finds each site's directions on texts, on what the sites before have left.

    Args:
        base: the dense model.
        batches: the texts.
        width: W, at most D.
        centred: whether each embedding loses its mean, as in the released code: exact
            for LayerNorm alone.
        mesh: the devices that the texts are run on.
    """
    cfg = base.config
    walk = Walk(base, batches, centred=centred, mesh=mesh)
    carried: list[float] = []

    def site() -> np.ndarray:
        found = walk.covariance()
        own = found.directions()[:, :width]
        carried.append(found.carried(own))
        return own

    before = start = site()
    found: list[Layer] = []
    progress = progress_lib.Progress('Rotations', cfg.num_layers)
    for number in range(cfg.num_layers):
        own = walk.reader.layer(number)
        walk.attend(block_of(cfg, _reading(own, before), width), before)
        middle = site()
        after = np.eye(cfg.d_model)
        # Behind the last layer nothing is cut, as the unembedding is not.
        if number + 1 < cfg.num_layers:
            walk.feed(block_of(cfg, _reading(own, middle), width), middle)
            after = site()
        found.append(_float32(rotated_layer(own, before, middle, after)))
        before = after
        progress.update(number + 1, f'{carried[-1]:.4f} of the stream carried')
    progress.close()
    return Sliced(
        width,
        (walk.top['embedding'] @ start).astype(np.float32),
        walk.top['head'].astype(np.float32),
        False,
        found,
        carried,
    )


def fit_single(
    base: base_model.BaseModel,
    batches: batches_lib.Batches,
    width: int,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Sliced:
    """One rotation for all sites, so that the stream passes by unchanged.

    It has the principal directions of what all norms of the dense model read, each
    token by its size; what comes of it is a stock model of a smaller `hidden_size`.

    Args:
        base: and all else: see `fit`.
    """
    cfg = base.config
    walk = Walk(base, batches, centred=False, mesh=mesh)
    whole = np.eye(cfg.d_model)
    pooled = walk.covariance(normed=True)
    progress = progress_lib.Progress('Covariance', cfg.num_layers)
    for number in range(cfg.num_layers):
        block = block_of(cfg, walk.reader.layer(number), cfg.d_model)
        walk.attend(block, whole)
        pooled.add(walk.covariance(normed=True).sums)
        walk.feed(block, whole)
        pooled.add(walk.covariance(normed=True).sums)
        progress.update(number + 1)
    progress.close()
    own = pooled.directions()[:, :width]
    layers = []
    for number in range(cfg.num_layers):
        turned = rotated_layer(walk.reader.layer(number), own, own, own)
        # Of orthogonal columns both are 1.
        del turned['turn_attention'], turned['turn_ffn']
        layers.append(_float32(turned))
    return Sliced(
        width,
        (walk.top['embedding'] @ own).astype(np.float32),
        (walk.top['head'] @ own).astype(np.float32),
        True,
        layers,
        [pooled.carried(own)],
    )


def _reading(layer: Layer, own: np.ndarray) -> Layer:
    """A folded layer whose matrices read a stream in some directions [D, W]."""
    return layer | {name: own.T @ layer[name] for name in READS}


def _float32(layer: Layer) -> Layer:
    return {name: x.astype(np.float32) for name, x in layer.items()}

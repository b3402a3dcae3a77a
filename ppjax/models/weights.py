"""A decoder's parameters as nested dicts of arrays, and back.

Optimizers, checkpoints and sharding rules want plain arrays under names; the names
are those of `Decoder` and `DecoderBlock`.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import int8_head
from ppjax.parallel import execution

Model = TypeVar('Model', bound=Any)

# {'embedding': [V, D], 'blocks': {'w_q': [L, D, N*H], ...}, ...}; where the blocks'
# matrices are int8, their scales too: {'scales': {'w_q': [L, N*H], ...}, ...}; and an
# int8 unembedding, {'int8_head': {'values': [V, D], 'scale': [V]}, ...}.
Weights = dict[str, Any]


def _names(path: tuple[Any, ...]) -> list[str]:
    # The last key is Param's own `.value`.
    match [key.name for key in path[:-1]]:
        case ['blocks', matrix, 'scale']:
            return ['scales', matrix]
        case ['int8_head', part]:
            return ['int8_head', part]
        case [*names, 'values']:
            return names
        case names:
            return names


def _abstract(
    cfg: config_lib.ModelConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
    int8_matrices: bool = False,
    has_int8_head: bool = False,
) -> decoder_lib.Decoder:
    def make() -> decoder_lib.Decoder:
        made = decoder_lib.Decoder(
            cfg, dtype=dtype, key=jax.random.key(0), int8_matrices=int8_matrices
        )
        return int8_head.unembedding_in_int8(made) if has_int8_head else made

    return jax.eval_shape(make)


def abstract(
    cfg: config_lib.ModelConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
    int8_matrices: bool = False,
) -> Weights:
    """The shapes of all parameters; see `Decoder`."""
    return weights_of(_abstract(cfg, dtype, int8_matrices))


def num_parameters(cfg: config_lib.ModelConfig) -> int:
    """How many there are; tied ones count once."""
    return sum(x.size for x in jax.tree.leaves(abstract(cfg)))


def weights_of(decoder: decoder_lib.Decoder) -> Weights:
    """The parameters under their names; the arrays are shared, not copied."""
    found: Weights = {}
    for path, value in jax.tree_util.tree_flatten_with_path(decoder)[0]:
        *owners, name = _names(path)
        place = found
        for owner in owners:
            place = place.setdefault(owner, {})
        place[name] = value
    return found


def decoder_of(cfg: config_lib.ModelConfig, weights: Weights) -> decoder_lib.Decoder:
    """The decoder of some parameters, of whatever dtype they are.

    Raises:
        KeyError: if one that the config asks for is not there.
    """
    like = _abstract(
        cfg, int8_matrices='scales' in weights, has_int8_head='int8_head' in weights
    )
    return _filled(like, weights)


def block_of(cfg: config_lib.ModelConfig, weights: Weights) -> decoder_lib.DecoderBlock:
    """The only block of a model of one layer.

    Args:
        cfg: of the model.
        weights: what `Weights` has under 'blocks', [1, ...]; no int8.

    Raises:
        KeyError: if one that the config asks for is not there.
    """
    return _filled(_abstract(cfg).blocks, {name: x[0] for name, x in weights.items()})


def _filled(like: Model, weights: Weights) -> Model:
    def value(path: tuple[Any, ...], _: Any) -> Any:
        found: Any = weights
        for name in _names(path):
            found = found[name]
        return found

    return jax.tree_util.tree_map_with_path(value, like)


def with_tables_gathered(model: Model) -> Model:
    """See `execution.gather_tables`; the model itself where no mesh is in force.

    Args:
        model: a decoder, or what holds one.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return model

    def gathered(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        # The last key is Param's own.
        name = getattr(path[-2], 'name', '')
        return execution.gather_tables({name: value})[name]

    return jax.tree_util.tree_map_with_path(gathered, model)

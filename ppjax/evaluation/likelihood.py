"""Persona likelihood: what a model expects of held-out answers, without any judge.

Under the persona prompt, for each answer token: -log p of the token; the
Kullback-Leibler divergence of the model's distribution from the dense model's; and
whether both have the same likeliest token.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.data import chat, packing
from ppjax.evaluation import bootstrap
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import loss as loss_lib
from ppjax.masking import apply
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import execution, sharding

# Answer tokens whose logits, of two models, exist at a time.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class ModelLikelihood:
    """Sums over the answer tokens of each of n examples.

    Attributes:
        nll: [n] -log p of the tokens, in nats.
        kl: [n] divergence of the dense model's distributions from this model's, in
            nats.
        agreement: [n] tokens at which both have the same likeliest one.
        tokens: [n].
    """

    nll: np.ndarray
    kl: np.ndarray
    agreement: np.ndarray
    tokens: np.ndarray


@functools.partial(jax.jit, static_argnames='shape')
def _states(
    model: decoder_lib.Decoder,
    masks: masks_lib.Masks,
    rows: packing.PackedBatch,
    shape: packing.PackedShape,
) -> jax.Array:
    return loss_lib.answer_states(model, masks, rows, shape, remat='none')


@jax.jit
def _compare(
    models: Sequence[decoder_lib.Decoder],
    states: Sequence[jax.Array],
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of n models, [M, D] each -> (nll, KL, same likeliest token), float32 [n, M] each.

    The last two compare with the first model, whose logits are computed once.
    """
    size = len(targets)
    padded = -size % _CHUNK

    def figures(p: jax.Array, q: jax.Array, wanted: jax.Array) -> tuple[jax.Array, ...]:
        nll = -jnp.take_along_axis(q, wanted[:, None], axis=-1)[:, 0]
        kl = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
        same = jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)
        return nll, kl, same.astype(jnp.float32)

    def part(x: tuple[list[jax.Array], jax.Array]) -> tuple[jax.Array, ...]:
        chunks, wanted = x
        p = None
        found = []
        for model, chunk in zip(models, chunks, strict=True):
            q = jax.nn.log_softmax(model.unembed(chunk), axis=-1)  # [chunk, V]
            p = q if p is None else p
            found.append(figures(p, q, wanted))
        nll, kl, same = (jnp.stack(own) for own in zip(*found, strict=True))
        return nll, kl, same

    def fold(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, padded), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, _CHUNK, *x.shape[1:])

    found = jax.lax.map(part, ([fold(own) for own in states], fold(targets)))
    nll, kl, same = (
        execution.whole(x.swapaxes(0, 1).reshape(len(models), -1)[:, :size])
        for x in found
    )
    return nll, kl, same


def measure(
    models: Sequence[apply.LoadedModel],
    examples: Sequence[chat.Example],
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> list[ModelLikelihood]:
    """Measures every model on the same examples, packed behind their common prefix.

    Args:
        models: the first is what divergence and agreement compare with.
        examples: rendered held-out conversations.
        batch_size: examples run at a time.
        progress: called with (batches done, batches in all).

    Raises:
        InputError: if a model gives what is no number.
    """
    order = heldout_lib.even_batches(examples, batch_size)
    mesh = sharding.lies_on(models[0].decoder)
    shape = packing.plan_shape(
        examples,
        order,
        prefix=packing.common_prefix(examples),
        rows=1 if mesh is None else sharding.row_shards(mesh),
    )

    call = functools.partial(execution.call, mesh)
    run = functools.partial(call, _states, shape=shape)
    decoders = [model.decoder for model in models]
    sums = np.zeros((len(models), 3, len(examples)))
    for done, batch in enumerate(order):
        progress(done, len(order))
        rows = packing.pack(examples, batch, shape).first()
        placed = rows if mesh is None else sharding.shard_rows(rows, mesh)
        real = np.asarray(rows.weights) > 0
        owners = batch[np.asarray(rows.owners)[real]]
        states = [run(model.decoder, model.masks, placed) for model in models]
        found = call(
            _compare,
            decoders,
            [own.reshape(-1, own.shape[-1]) for own in states],
            jnp.asarray(rows.targets).reshape(-1),
        )
        for figure_number, values in enumerate(found):
            wanted = np.asarray(values, np.float64)[:, real.reshape(-1)]
            for own, of_tokens in zip(sums, wanted, strict=True):
                np.add.at(own[figure_number], owners, of_tokens)
    progress(len(order), len(order))
    broken = int((~np.isfinite(sums).all(axis=(0, 1))).sum())
    if broken:
        raise errors.InputError(
            f'The likelihood of {broken} of {len(examples)} held-out answers is not '
            'finite; --dtype=float32 may help, or a model has damaged weights.'
        )
    tokens = np.array([example.num_answer_tokens for example in examples])
    return [ModelLikelihood(nll, kl, same, tokens) for nll, kl, same in sums]


def figure(values: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Mean a token of sums over the tokens of n examples, and its 95 % interval."""
    return {
        'mean': float(values.sum() / tokens.sum()),
        'interval': bootstrap.ratio_interval(values, tokens),
    }


def as_json(
    names: Sequence[str], found: Sequence[ModelLikelihood], query_ids: Sequence[str]
) -> dict[str, Any]:
    """Means per answer token with 95 % intervals over examples, and every example.

    Args:
        names: of the models; the others are compared with the first.
        found: of each.
        query_ids: of the examples.
    """
    models: dict[str, Any] = {}
    for name, own in zip(names, found, strict=True):
        models[name] = {'nll': figure(own.nll, own.tokens)}
        if name != names[0]:
            models[name] |= {
                'kl_to_dense': figure(own.kl, own.tokens),
                'agreement': figure(own.agreement, own.tokens),
                'nll_difference': figure(own.nll - found[0].nll, own.tokens),
            }
    return {
        'models': models,
        'examples': [
            {'query_id': query_id, 'answer_tokens': int(found[0].tokens[i])}
            | {
                name: {
                    'nll': round(float(own.nll[i]), 6),
                    'kl': round(float(own.kl[i]), 6),
                    'agreement': int(own.agreement[i]),
                }
                for name, own in zip(names, found, strict=True)
            }
            for i, query_id in enumerate(query_ids)
        ],
    }

"""How differently a model represents a query under a persona (paper, Eq. 2).

    s(q; P) = 1/(B r) sum_b sum_j (1 - cos(h_Pj^b(q), h_P^b(q)))

h_P^b(q) is the hidden state of the prompt's last token after block b, under
persona P; P_1 ... P_r are reference personas.
"""

from collections.abc import Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.models import attention, generation, products, shared_prefix
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.parallel import execution, sharding
from ppjax.synthesis import prompt_tokens, query_packing


def parse_layers(text: str | None, num_layers: int) -> tuple[int, int]:
    """`a:b` over [embedding, block 1, ..., block B]; None is all blocks.

    Raises:
        InputError: if it is no such range, or empty.
    """
    if text is None:
        return 1, num_layers + 1
    start, colon, stop = text.partition(':')
    try:
        found = int(start or 0), int(stop or num_layers + 1)
    except ValueError:
        found = 0, 0
    if not colon or not 0 <= found[0] < found[1] <= num_layers + 1:
        raise errors.InputError(
            f'--score_layers must be a:b with 0 <= a < b <= {num_layers + 1} (0 is the '
            f'embedding, 1 to {num_layers} are the blocks), got {text!r}.'
        )
    return found


@jax.jit
def _last_states(
    model: decoder_lib.Decoder,
    prefix: shared_prefix.SharedPrefix,
    batch: query_packing.PackedQueries,
) -> jax.Array:
    """The blocks' outputs at the last tokens, [L, B, M, D]."""

    def tap(before: jax.Array, after: jax.Array, hidden: jax.Array) -> jax.Array:
        del before, hidden
        return jnp.take_along_axis(after, batch.ends[:, :, None], axis=1)

    _, _, states = model(
        jnp.asarray(batch.tokens),
        prefix.length + batch.offsets,
        masks_lib.DENSE,
        attention.Prefixed(prefix.length, jnp.asarray(batch.segments)),
        cache=prefix.cache,
        tap=tap,
    )
    return states


@functools.partial(jax.jit, static_argnames=('first', 'last'))
def _distance(
    target: jax.Array, other: jax.Array, *, first: int, last: int
) -> jax.Array:
    """Sum over blocks first..last of 1 - cos; [L, B, M, D] each -> [B, M]."""
    blocks = slice(first - 1, last)
    a = target[blocks].astype(jnp.float32)
    b = other[blocks].astype(jnp.float32)
    dot = products.product('lbmd,lbmd->lbm', a, b)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return execution.whole(jnp.sum(1 - dot / norms, axis=0))


class Scorer:
    """Scores queries under a target persona against reference personas.

    Every persona's prefix is run once; queries are packed into rows behind it and
    spread over the devices. Personas whose prefixes are about equally long share one
    compiled function; a much longer one has its own, as every query attends to it.
    """

    def __init__(
        self,
        model: decoder_lib.Decoder,
        prompts: prompt_tokens.PromptTokens,
        *,
        layers: tuple[int, int],
        batch_tokens: int,
    ):
        """Args:
            model: the frozen dense model.
            prompts: prefixes of the target (first) and of the references, and the
                queries' own tokens.
            layers: a, b over [embedding, block 1, ..., block B]. The embedding of
                the last token is the same under all personas: it adds 0.
            batch_tokens: tokens of queries that a call runs.

        Raises:
            InputError: if there is no reference.
        """
        if len(prompts.prefixes) < 2:
            raise errors.InputError(
                'Sensitivity compares the persona with reference personas, and there '
                'is none besides the persona itself.'
            )
        self._mesh = sharding.mesh_of(model)
        self._model = sharding.on_mesh(model, self._mesh)
        self._calls = query_packing.pack(
            prompts.suffixes,
            batch_tokens=batch_tokens,
            row_multiple=sharding.row_shards(self._mesh),
        )
        self._prefixes = [
            sharding.replicate(
                shared_prefix.compute(
                    model, masks_lib.DENSE, prefix, slots=generation.bucket(len(prefix))
                ),
                self._mesh,
            )
            for prefix in prompts.prefixes
        ]
        self._layers = layers

    def score(
        self, skip: Sequence[int] | frozenset[int] = ()
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores call by call.

        Args:
            skip: queries that are known already; a call of nothing else is not run.

        Yields:
            (queries [n], their scores [n] float64), the skipped left out.
        """
        first, stop = self._layers
        known = np.array(sorted(skip), int)
        for call in self._calls:
            wanted = (call.owners >= 0) & ~np.isin(call.owners, known)
            if not wanted.any():
                continue
            batch = sharding.shard_rows(call, self._mesh)
            target, *references = self._prefixes
            run = functools.partial(execution.call, self._mesh)
            mine = run(_last_states, self._model, target, batch)
            total: jax.Array | float = 0.0
            for reference in references:
                theirs = run(_last_states, self._model, reference, batch)
                total = total + run(
                    _distance, mine, theirs, first=max(first, 1), last=stop - 1
                )
            mean = np.asarray(total, np.float64) / (len(references) * (stop - first))
            yield call.owners[wanted], mean[wanted]

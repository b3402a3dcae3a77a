"""What a mask learning step costs, against lengths, layers and examples a step.

Of a model with random weights and of random tokens: only time and memory are asked, so a
`config.json` is enough.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    matrix_peak,
    torch_mask_step,
    torch_model,
)
from ppjax.data import packing
from ppjax.evaluation import efficiency, timing
from ppjax.learning import loss as loss_lib
from ppjax.masking import topk
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import rope as rope_lib
from ppjax.pages import formats
from ppjax.planning import step_shape, useful_flops
from ppjax.training import step as step_lib
from ppjax.training import turns

_PEAK_SIZE = 4096
_SPARSITIES = (0.0, 0.25, 0.5, 0.75)


AXES = tuple(field.name for field in dataclasses.fields(step_shape.Shape))


def read_curves(text: str, num_layers: int) -> dict[str, list[int]]:
    """Reads `axis=number,number;axis=number,...`.

    Args:
        text: what `--curves` holds. Layers may be shares, as 0.5.
        num_layers: L.

    Raises:
        InputError: for an unknown axis and for what is no number or no such depth.
    """
    curves: dict[str, list[int]] = {}
    for part in filter(str.strip, text.split(';')):
        axis, _, listed = (piece.strip() for piece in part.partition('='))
        if axis not in AXES:
            raise errors.InputError(
                f'--curves: unknown axis {axis!r}; there are {", ".join(AXES)}.'
            )
        try:
            values = [float(value) for value in listed.split(',')]
        except ValueError:
            raise errors.InputError(
                f'--curves: {part.strip()!r} is no axis with numbers; wanted '
                'axis=number,number and semicolons between axes.'
            ) from None
        if axis == 'layers':
            values = [
                value * num_layers if 0 < value <= 1 else value for value in values
            ]
        most = num_layers if axis == 'layers' else np.inf
        if not all(1 <= value <= most for value in values):
            upper = f' and at most {num_layers}' if axis == 'layers' else ''
            raise errors.InputError(
                f'--curves: values of {axis} must be at least 1{upper}, got {listed}.'
            )
        curves[axis] = sorted({round(value) for value in values})
    return curves


class _Step:
    """The compiled step of one shape over a model of its depth."""

    def __init__(
        self,
        model: decoder_lib.Decoder,
        shape: step_shape.Shape,
        *,
        sparsity: float,
        remat: str,
    ):
        cfg = model.cfg
        self.examples = shape.examples(cfg.vocab_size)
        self.packed = shape.packed(self.examples)
        everyone = np.arange(shape.batch)
        self.batch = packing.pack(self.examples, everyone, self.packed)
        learning = step_lib.Learning(
            keep=topk.keep_size(cfg.d_ff, sparsity, 1),
            estimator='ste',
            objective='ce',
            anneal=0.0,
            weight_decay=0.01,
            remat=remat,
            seed=0,
        )
        scores = jax.random.normal(jax.random.key(1), (1, cfg.num_layers, cfg.d_ff))
        turn = turns.make_turn([0], [0], [1], [lambda _: 1e-2], slots=1)
        batch = jax.tree.map(lambda x: x[None], self.batch)
        self._args = (step_lib.init_state(scores, learning), model, batch, turn)
        step = step_lib.make_train_step(learning, self.packed)
        self._compiled = jax.jit(step).lower(*self._args).compile()
        self.useful_flops = useful_flops.mask_step(
            cfg,
            prefix=shape.persona,
            own=[shape.own] * shape.batch,
            answers=shape.answer * shape.batch,
        )

    def __call__(self) -> None:
        jax.block_until_ready(self._compiled(*self._args))

    def memory(self) -> dict[str, float | None]:
        """XLA's plan; None where the backend tells none."""
        plan = self._compiled.memory_analysis()
        return {
            name: formats.number(getattr(plan, f'{name}_size_in_bytes', None))
            for name in ('argument', 'temp', 'output')
        }


def _parts(model: decoder_lib.Decoder, step: _Step) -> dict[str, Callable[[], None]]:
    """Attention and FFN of one block and the unembedding, each with its gradient.

    Of the activations, and of the mask: what the step differentiates.
    """
    cfg = model.cfg
    rows = step.batch.first()
    dtype = model.embedding[...].dtype
    block = jax.tree.map(lambda x: x[0], model.blocks)
    attend = step.packed.attend(jnp.asarray(rows.segments))
    frequencies = rope_lib.inverse_frequencies(
        cfg.head_dim, cfg.rope_theta, cfg.rope_scaling
    )
    rope = rope_lib.rotation(jnp.asarray(rows.positions), frequencies)
    shape = (*rows.tokens.shape, cfg.d_model)
    x = jax.random.normal(jax.random.key(2), shape).astype(dtype)
    hidden = jax.random.normal(jax.random.key(3), (rows.targets.size, cfg.d_model))
    targets = jnp.asarray(rows.targets.reshape(-1))

    def attending(block: decoder_lib.DecoderBlock, x: jax.Array) -> Any:
        def run(x: jax.Array) -> jax.Array:
            return block.attention(
                decoder_lib.rms_norm(x, block.attn_norm[...], cfg.norm_eps),
                rope,
                attend,
                None,
                {},
            )[0]

        out, pull = jax.vjp(run, x)
        return out, pull(x)

    def ffn(block: decoder_lib.DecoderBlock, x: jax.Array) -> Any:
        def run(x: jax.Array, mask: jax.Array) -> jax.Array:
            x = decoder_lib.rms_norm(x, block.ffn_norm[...], cfg.norm_eps)
            return block.ffn(x, mask, {})[0]

        out, pull = jax.vjp(run, x, jnp.ones(cfg.d_ff))
        return out, pull(x)

    def unembedding(model: decoder_lib.Decoder, hidden: jax.Array) -> Any:
        def run(hidden: jax.Array) -> jax.Array:
            losses = loss_lib.token_losses(model, hidden, targets, None, objective='ce')
            return jnp.sum(losses)

        return jax.value_and_grad(run)(hidden)

    def ready(part: Callable[..., Any], *args: Any) -> Callable[[], None]:
        compiled = jax.jit(part).lower(*args).compile()

        def run() -> None:
            jax.block_until_ready(compiled(*args))

        return run

    return {
        'attention': ready(attending, block, x),
        'ffn': ready(ffn, block, x),
        'unembedding': ready(unembedding, model, hidden.astype(dtype)),
    }


def _take_turns(
    runs: Mapping[Any, Callable[[], None]], rounds: int, label: str
) -> dict[Any, list[float]]:
    """Seconds of each, one a round, after one that is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for name in progress_lib.over([*runs] * (rounds + 1), label):
        began = time.perf_counter()
        runs[name]()
        seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def _where_time_goes(
    model: decoder_lib.Decoder, step: _Step, rounds: int
) -> dict[str, Any]:
    """Shares of a step's time, its parts timed alone and taken L times."""
    runs = _parts(model, step) | {'step': step}
    seconds = {
        name: statistics.median(times)
        for name, times in _take_turns(runs, rounds, 'Parts').items()
    }
    whole = seconds.pop('step')
    for name in ('attention', 'ffn'):
        seconds[name] *= model.cfg.num_layers
    seconds['other'] = whole - sum(seconds.values())
    return {'step_seconds': whole, 'seconds': seconds}


def _reference(
    hf_config: Mapping[str, Any], step: _Step, *, keep: int, dtype: str, rounds: int
) -> dict[str, Any]:
    """The same step in PyTorch, in turn with ours.

    All examples are equally long, so that it pads nothing.
    """
    batch = torch_mask_step.padded(step.examples, range(len(step.examples)))
    model = torch_model.random(hf_config, dtype=dtype)
    rng = np.random.default_rng(1)
    config = model.config
    learner = torch_mask_step.MaskLearner(
        model,
        rng.normal(size=(config.num_hidden_layers, config.intermediate_size)),
        keep,
        learning_rate=1e-2,
        weight_decay=0.01,
    )

    def take() -> None:
        learner.step(batch)

    times = _take_turns({'ppjax': step, 'pytorch': take}, rounds, 'Beside PyTorch')
    ours, theirs = (timing.spread(times[name]) for name in ('ppjax', 'pytorch'))
    return {
        'ppjax': {'step_seconds': ours},
        'pytorch': {'step_seconds': theirs, 'device': str(model.device)},
        'ratio_to_reference': theirs['median'] / ours['median'],
    }


def measure(
    hf_config: Mapping[str, Any],
    base: step_shape.Shape,
    curves: Mapping[str, Sequence[int]],
    *,
    sparsity: float,
    dtype: str,
    remat: str,
    rounds: int,
    reference: bool = False,
) -> dict[str, Any]:
    """Times steps of many shapes, in turn, each differing from one in one number.

    Args:
        hf_config: what the model's config.json holds; its weights are drawn.
        base: the shape that the others differ from, with all layers.
        curves: axis of `Shape` -> its values.
        sparsity: share of channels removed. Masked ones are computed too, so that it
            changes neither time nor memory of a step.
        dtype: of weights and activations.
        remat: see `Decoder.__call__`.
        rounds: each runs every shape once.
        reference: whether PyTorch takes steps of the base shape too.

    Returns:
        For each axis the points with seconds a step and an example, useful FLOPs and
        the share of a matrix product's peak they reach, and XLA's memory plan; where
        a step's time goes; and sizes of the pruned model against sparsity. With
        the reference, PyTorch's seconds and `ratio_to_reference`.

    Raises:
        InputError: for a config that is not implemented, or if the reference is wanted
            and PyTorch is not installed.
    """
    cfg = config_lib.from_hf_config(dict(hf_config))
    if reference:
        torch_model.check_installed()

    @functools.cache
    def model(layers: int) -> decoder_lib.Decoder:
        depth = dataclasses.replace(cfg, num_layers=layers)
        key = jax.random.key(0)
        return decoder_lib.Decoder(depth, dtype=jnp.dtype(dtype), key=key)

    shapes = {
        dataclasses.replace(base, **{axis: value})
        for axis, values in curves.items()
        for value in values
    } | {base}
    ordered = sorted(shapes, key=dataclasses.astuple)
    steps = {
        shape: _Step(model(shape.layers), shape, sparsity=sparsity, remat=remat)
        for shape in progress_lib.over(ordered, 'Shapes compiled')
    }
    seconds = _take_turns(steps, rounds, 'Steps')
    peak = matrix_peak.flops_per_s(jnp.dtype(dtype), size=_PEAK_SIZE)

    def point(shape: step_shape.Shape) -> dict[str, Any]:
        step, times = steps[shape], seconds[shape]
        median = statistics.median(times)
        return dataclasses.asdict(shape) | {
            'step_seconds': timing.spread(times),
            'seconds_per_example': median / shape.batch,
            'answer_tokens_per_s': shape.answer * shape.batch / median,
            'useful_flops': step.useful_flops,
            'utilisation': step.useful_flops / median / peak,
            'bytes': step.memory(),
        }

    found = {
        'curves': {
            axis: [
                point(dataclasses.replace(base, **{axis: value})) for value in values
            ]
            for axis, values in curves.items()
        },
        'base': point(base),
        'parts': _where_time_goes(model(base.layers), steps[base], rounds),
        'pruned_model': [
            _pruned(cfg, base, sparsity, dtype) for sparsity in _SPARSITIES
        ],
        'matrix_peak_flops_per_s': peak,
        'device': jax.devices()[0].device_kind,
    }
    if reference:
        keep = topk.keep_size(cfg.d_ff, sparsity, 1)
        found |= _reference(
            hf_config, steps[base], keep=keep, dtype=dtype, rounds=rounds
        )
    return found


def _pruned(
    cfg: config_lib.ModelConfig, shape: step_shape.Shape, sparsity: float, dtype: str
) -> dict[str, float]:
    """Sizes of the exported model, in closed form."""
    figures = efficiency.measure(
        cfg,
        topk.keep_size(cfg.d_ff, sparsity, 1),
        dtype=dtype,
        prompt_length=shape.persona + step_shape.QUESTION,
        answer_length=shape.answer,
    ).pruned
    return {
        'sparsity': sparsity,
        'bytes': figures.bytes,
        'decode_weight_bytes': figures.decode_weight_bytes,
        'kv_bytes_per_token': figures.kv_bytes_per_token,
    }

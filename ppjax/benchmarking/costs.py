"""What a mask learning step costs, against lengths, layers and examples a step.

Of a model with random weights and of random tokens: only time and memory are asked, so a
`config.json` is enough.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, matrix_peak, torch_mask_step, torch_model
from ppjax.data import packing
from ppjax.evaluation import efficiency, timing
from ppjax.learning import loss as loss_lib
from ppjax.masking import topk
from ppjax.models import base_model
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import rope as rope_lib
from ppjax.pages import formats
from ppjax.planning import step_shape
from ppjax.sweeping import grid
from ppjax.training import step as step_lib

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
    for axis, texts in grid.listed('curves', filter(str.strip, text.split(';')), AXES):
        listed = ','.join(texts)
        try:
            values = [float(value) for value in texts]
        except ValueError:
            raise errors.InputError(
                f"--curves: '{axis}={listed}' is no axis with numbers."
            ) from None
        most, upper = np.inf, ''
        if axis == 'layers':
            values = [x * num_layers if 0 < x <= 1 else x for x in values]
            most, upper = num_layers, f' and at most {num_layers}'
        if not all(1 <= value <= most for value in values):
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
        learning: step_lib.Learning,
    ):
        cfg = model.cfg
        self.examples = shape.examples(cfg.vocab_size)
        self.packed = shape.packed(self.examples)
        everyone = np.arange(shape.batch)
        self.batch = packing.pack(self.examples, everyone, self.packed)
        scores = jax.random.normal(jax.random.key(1), (1, cfg.num_layers, cfg.d_ff))
        batch = jax.tree.map(lambda x: x[None], self.batch)
        self._args = (
            step_lib.init_state(scores, learning),
            model,
            batch,
            step_shape.plain_turn(),
        )
        step = step_lib.make_train_step(learning, self.packed)
        self._compiled = jax.jit(step).lower(*self._args).compile()
        self.useful_flops = shape.useful_flops(cfg)

    def __call__(self, _: int) -> None:
        jax.block_until_ready(self._compiled(*self._args))

    def memory(self) -> dict[str, float | None]:
        """XLA's plan; None where the backend tells none."""
        plan = self._compiled.memory_analysis()
        return {
            name: formats.number(getattr(plan, f'{name}_size_in_bytes', None))
            for name in ('argument', 'temp', 'output')
        }


def _with_gradient(
    part: Callable[..., jax.Array], weights: Any, *inputs: jax.Array
) -> Callable[[int], None]:
    """A part of the model and the gradient of its inputs, compiled."""

    def run(weights: Any, *inputs: jax.Array) -> Any:
        out, pull = jax.vjp(functools.partial(part, weights), *inputs)
        return out, pull(out)

    compiled = jax.jit(run).lower(weights, *inputs).compile()
    return lambda _: jax.block_until_ready(compiled(weights, *inputs))


def _parts(model: decoder_lib.Decoder, step: _Step) -> dict[str, Callable[[int], None]]:
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

    def attention(block: decoder_lib.DecoderBlock, x: jax.Array) -> jax.Array:
        x = decoder_lib.rms_norm(x, block.attn_norm[...], cfg.norm_eps)
        return block.attention(x, rope, attend, None, {})[0]

    def ffn(
        block: decoder_lib.DecoderBlock, x: jax.Array, mask: jax.Array
    ) -> jax.Array:
        x = decoder_lib.rms_norm(x, block.ffn_norm[...], cfg.norm_eps)
        return block.ffn(x, mask, {})[0]

    def unembedding(model: decoder_lib.Decoder, hidden: jax.Array) -> jax.Array:
        losses = loss_lib.token_losses(model, hidden, targets, None, objective='ce')
        return jnp.sum(losses)

    return {
        'attention': _with_gradient(attention, block, x),
        'ffn': _with_gradient(ffn, block, x, jnp.ones(cfg.d_ff)),
        'unembedding': _with_gradient(unembedding, model, hidden.astype(dtype)),
    }


def _take_turns(
    runs: Mapping[Any, Callable[[int], Any]], rounds: int, label: str
) -> dict[Any, dict[str, float]]:
    """Seconds of each, one a round, after one that is not counted."""
    taken = timing.in_turn(runs, range(rounds + 1), progress_lib.counter(label))
    return {
        name: timing.spread([seconds for seconds, _ in own[1:]])
        for name, own in taken.items()
    }


def _where_time_goes(
    model: decoder_lib.Decoder, step: _Step, rounds: int
) -> dict[str, Any]:
    """Shares of a step's time, its parts timed alone and taken L times."""
    times = _take_turns(_parts(model, step) | {'step': step}, rounds, 'Parts')
    seconds = {name: spread['median'] for name, spread in times.items()}
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
    sizes = model.config
    learner = torch_mask_step.MaskLearner(
        model,
        rng.normal(size=(sizes.num_hidden_layers, sizes.intermediate_size)),
        keep,
        learning_rate=step_shape.LEARNING_RATE,
        weight_decay=step_shape.WEIGHT_DECAY,
    )
    runs: dict[str, Callable[[int], Any]] = {
        'ppjax': step,
        'pytorch': lambda _: learner.step(batch),
    }
    times = _take_turns(runs, rounds, 'Beside PyTorch')
    ours, theirs = times['ppjax'], times['pytorch']
    return {
        'ppjax': {'step_seconds': ours},
        'pytorch': {'step_seconds': theirs, 'device': str(model.device)},
        'ratio_to_reference': theirs['median'] / ours['median'],
    }


def measure(cfg: config.BenchConfig) -> dict[str, Any]:
    """Times steps of many shapes, in turn, each differing from one in one number.

    The model has what `--base_model`'s config.json says, and weights that are drawn.
    Masked channels are computed too, so that the sparsity changes neither time nor
    memory of a step.

    Returns:
        For each axis the points with seconds a step and an example, useful FLOPs and
        the share of a matrix product's peak they reach, and XLA's memory plan; where
        a step's time goes; and sizes of the pruned model against sparsity. With
        the reference, PyTorch's seconds and `ratio_to_reference`.

    Raises:
        InputError: for a config that is not implemented, if the reference takes no
            steps, or if it is PyTorch, which is not installed.
    """
    if cfg.reference == 'llama.cpp':
        raise errors.InputError(
            '--reference=llama.cpp is for generate: it takes no steps of learning.'
        )
    hf_config = base_model.read_hf_config(cfg.base_model)
    whole = config_lib.from_hf_config(hf_config)
    base = step_shape.Shape(
        cfg.prompt_length, cfg.answer_length, cfg.batch_size, whole.num_layers
    )
    curves = read_curves(cfg.curves, whole.num_layers)
    if cfg.reference:
        torch_model.check_installed()
    keep = topk.keep_size(whole.d_ff, cfg.sparsity, 1)
    learning = step_shape.plain_learning(keep, remat=cfg.remat)

    @functools.cache
    def model(layers: int) -> decoder_lib.Decoder:
        depth = dataclasses.replace(whole, num_layers=layers)
        key = jax.random.key(0)
        return decoder_lib.Decoder(depth, dtype=jnp.dtype(cfg.dtype), key=key)

    lines = {
        axis: [dataclasses.replace(base, **{axis: value}) for value in values]
        for axis, values in curves.items()
    }
    shapes = sorted({base}.union(*lines.values()), key=dataclasses.astuple)
    steps = {
        shape: _Step(model(shape.layers), shape, learning)
        for shape in progress_lib.over(shapes, 'Shapes compiled')
    }
    seconds = _take_turns(steps, cfg.rounds, 'Steps')
    peak = matrix_peak.flops_per_s(jnp.dtype(cfg.dtype), size=matrix_peak.best_size())

    def point(shape: step_shape.Shape) -> dict[str, Any]:
        step, median = steps[shape], seconds[shape]['median']
        return dataclasses.asdict(shape) | {
            'step_seconds': seconds[shape],
            'seconds_per_example': median / shape.batch,
            'answer_tokens_per_s': shape.answer * shape.batch / median,
            'useful_flops': step.useful_flops,
            'utilisation': step.useful_flops / median / peak,
            'bytes': step.memory(),
        }

    found = {
        'curves': {axis: list(map(point, line)) for axis, line in lines.items()},
        'base': point(base),
        'parts': _where_time_goes(model(base.layers), steps[base], cfg.rounds),
        'pruned_model': [
            _pruned(whole, base, sparsity, cfg.dtype) for sparsity in _SPARSITIES
        ],
        'matrix_peak_flops_per_s': peak,
        'device': jax.devices()[0].device_kind,
    }
    if cfg.reference:
        found |= _reference(
            hf_config, steps[base], keep=keep, dtype=cfg.dtype, rounds=cfg.rounds
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

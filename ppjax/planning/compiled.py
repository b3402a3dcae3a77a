"""The real mask learning step, compiled for devices that need not be here."""

from collections.abc import Sequence
import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.data import packing
from ppjax.masking import topk
from ppjax.models import config as config_lib
from ppjax.models import weights as weights_lib
from ppjax.parallel import sharding
from ppjax.planning import collectives, config, step_shape
from ppjax.training import step as step_lib

_SIZE = re.compile(r'\b([\d.]+)([KMGT])\b')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the compiler says of one device.

    Attributes:
        fits: whether the step fits into the memory that a program may use.
        weights: bytes of all weights.
        memory: bytes. `peak` are in use at the worst moment, or at least so many where
            the step does not fit; `arguments` are what the step is given: its part of
            the weights, scores, moments and the batch; `temporaries` activations and
            other intermediate results; `available` is what a program may use, if the
            compiler or the chip says. None where the compiler did not say.
        traffic: kind of collective -> how many and how much.
        packed: how the examples are packed.
        seconds: that compiling took.
        program: what was compiled, to be called with the step's arguments; None where
            it does not fit.
    """

    fits: bool
    weights: int
    memory: dict[str, int | None]
    traffic: dict[str, collectives.Traffic]
    packed: packing.PackedShape
    seconds: float
    program: jax.stages.Compiled | None


def compile_step(
    cfg: config.PlanConfig,
    model: config_lib.ModelConfig,
    devices: Sequence[jax.Device],
    *,
    available: int | None,
) -> Fit:
    """Compiles the step; no array exists.

    Args:
        cfg: what is planned.
        model: the base model.
        devices: of a topology, or those here.
        available: bytes of a device, where its compiler does not refuse by itself.

    Raises:
        InputError: if the model cannot be split over the mesh, or the examples do
            not make up its rows.
    """
    mesh = sharding.make_mesh(cfg.mesh, list(devices))
    shape = cfg.shape(model.num_layers)
    examples = shape.examples(model.vocab_size)
    packed = shape.packed(
        examples, rows=sharding.row_shards(mesh), micro_batches=cfg.micro_batches
    )
    learning = step_shape.plain_learning(
        topk.keep_size(model.d_ff, cfg.sparsity, 1),
        remat=cfg.remat,
        objective=cfg.objective,
    )
    step = step_lib.make_train_step(learning, packed, mesh=mesh)
    batch = packing.pack(examples, np.arange(shape.batch), packed)
    args = _arguments(cfg, model, mesh, learning, batch)
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[1]))
    memory: dict[str, int | None] = {
        **dict.fromkeys(('peak', 'arguments', 'temporaries')),
        'available': available,
    }
    began, program = time.monotonic(), None
    try:
        program = step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        memory['peak'], limit = _told(str(error))
        memory['available'] = limit or available
    seconds = time.monotonic() - began
    if program is None:
        return Fit(False, weights, memory, {}, packed, seconds, None)
    plan = program.memory_analysis()
    arguments, temporaries, peak = (
        int(getattr(plan, f'{name}_in_bytes'))
        for name in ('argument_size', 'temp_size', 'peak_memory')
    )
    if devices[0].platform == 'cpu' or not peak:
        # XLA's CPU backend tells no peak that has anything to do with temporaries.
        peak = arguments + temporaries
    memory |= {'peak': peak, 'arguments': arguments, 'temporaries': temporaries}
    fits = available is None or peak <= available
    traffic = collectives.of_program(program.as_text())
    return Fit(fits, weights, memory, traffic, packed, seconds, program)


def _told(message: str) -> tuple[int | None, int | None]:
    """(bytes needed, bytes there), as XLA puts it when a program does not fit.

    "Used 57.5G of 15.75G hbm", or "... for HLO temporaries (131.50G) exceeds available
    HBM (15.75G)": then the arguments come on top.
    """
    found = [int(float(n) * _UNITS[unit]) for n, unit in _SIZE.findall(message)[:2]]
    return (found[0], found[1]) if len(found) == 2 else (None, None)


def _arguments(
    cfg: config.PlanConfig,
    model: config_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    learning: step_lib.Learning,
    batch: packing.PackedBatch,
) -> tuple[Any, ...]:
    """The step's arguments as shapes that say where they lie."""

    def placed(tree: Any, where: jax.sharding.Sharding) -> Any:
        def place(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        return jax.tree.map(place, tree)

    weights = weights_lib.abstract(model, jnp.dtype(cfg.dtype), cfg.int8_base)
    weights = jax.tree.map(placed, weights, sharding.shardings(weights, mesh))
    state = jax.eval_shape(
        lambda: step_lib.init_state(
            jnp.zeros((cfg.num_personas, model.num_layers, model.d_ff)), learning
        )
    )
    whole = sharding.replicated(mesh)
    slots = jax.tree.map(lambda x: np.stack([x] * cfg.slots), batch)
    return (
        placed(state, whole),
        weights_lib.decoder_of(model, weights),
        placed(slots, sharding.slot_rows(mesh)),
        placed(step_shape.plain_turn(slots=cfg.slots), whole),
    )

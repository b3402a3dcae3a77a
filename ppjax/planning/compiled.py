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
from ppjax.planning import collectives, step_shape
from ppjax.training import step as step_lib

_SIZE = re.compile(r'\b([\d.]+)([KMGT])\b')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A step to plan.

    Attributes:
        mesh: as `--mesh`; see `sharding.make_mesh`.
        shape: its examples.
        micro_batches: that it accumulates over.
        dtype: of weights and activations.
        remat: see `Decoder.__call__`.
        sparsity: share of channels removed.
        int8_base: whether the blocks' matrices are int8.
        objective: one of `loss.OBJECTIVES`.
        personas: P, whose scores and moments are kept.
        slots: N, personas that take the step side by side, with a batch each.
    """

    mesh: str | None
    shape: step_shape.Shape
    micro_batches: int
    dtype: str
    remat: str
    sparsity: float
    int8_base: bool
    objective: str = 'ce'
    personas: int = 1
    slots: int = 1


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the compiler says of one device.

    Attributes:
        fits: whether the step fits into the memory that a program may use.
        weights: bytes of all weights.
        peak: bytes in use at the worst moment, or at least so many where the step does
            not fit; None where the compiler did not say.
        arguments: bytes of what the step is given: its part of the weights, scores,
            moments and the batch.
        temporaries: bytes of activations and other intermediate results.
        available: bytes that a program may use, if the compiler or the chip says.
        traffic: kind of collective -> how many and how much.
        packed: how the examples are packed.
        seconds: that compiling took.
    """

    fits: bool
    weights: int
    peak: int | None
    arguments: int | None
    temporaries: int | None
    available: int | None
    traffic: dict[str, collectives.Traffic]
    packed: packing.PackedShape
    seconds: float


def compile_step(
    cfg: config_lib.ModelConfig,
    devices: Sequence[jax.Device],
    wanted: Wanted,
    *,
    available: int | None,
) -> Fit:
    """Compiles the step; no array exists.

    Args:
        cfg: of the base model.
        devices: of a topology, or those here.
        wanted: the step.
        available: bytes of a device, where its compiler does not refuse by itself.

    Raises:
        InputError: if the model cannot be split over the mesh, or the examples do
            not make up its rows.
    """
    mesh = sharding.make_mesh(wanted.mesh, list(devices))
    examples = wanted.shape.examples(cfg.vocab_size)
    packed = wanted.shape.packed(
        examples,
        rows=sharding.row_shards(mesh),
        micro_batches=wanted.micro_batches,
    )
    learning = step_lib.Learning(
        keep=topk.keep_size(cfg.d_ff, wanted.sparsity, 1),
        estimator='ste',
        objective=wanted.objective,
        anneal=0.0,
        weight_decay=0.01,
        remat=wanted.remat,
        seed=0,
    )
    step = step_lib.make_train_step(learning, packed, mesh=mesh)
    batch = packing.pack(examples, np.arange(wanted.shape.batch), packed)
    args = _arguments(cfg, mesh, learning, batch, wanted)
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[1]))
    began = time.monotonic()
    try:
        program = step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        needed, limit = _told(str(error))
        spent = time.monotonic() - began
        return Fit(
            False, weights, needed, None, None, limit or available, {}, packed, spent
        )
    spent = time.monotonic() - began
    memory = program.memory_analysis()
    arguments = int(memory.argument_size_in_bytes)
    temporaries = int(memory.temp_size_in_bytes)
    peak = int(memory.peak_memory_in_bytes)
    if devices[0].platform == 'cpu':
        # There XLA tells no peak that has anything to do with temporaries.
        peak = arguments + temporaries
    return Fit(
        available is None or peak <= available,
        weights,
        peak,
        arguments,
        temporaries,
        available,
        collectives.of_program(program.as_text()),
        packed,
        spent,
    )


def _told(message: str) -> tuple[int | None, int | None]:
    """(bytes needed, bytes there), as XLA puts it when a program does not fit.

    "Used 57.5G of 15.75G hbm", or "... for HLO temporaries (131.50G) exceeds available
    HBM (15.75G)": then the arguments come on top.
    """
    found = [int(float(n) * _UNITS[unit]) for n, unit in _SIZE.findall(message)[:2]]
    return (found[0], found[1]) if len(found) == 2 else (None, None)


def _arguments(
    cfg: config_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    learning: step_lib.Learning,
    batch: packing.PackedBatch,
    wanted: Wanted,
) -> tuple[Any, ...]:
    """The step's arguments as shapes that say where they lie."""

    def placed(tree: Any, where: jax.sharding.Sharding) -> Any:
        def place(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        return jax.tree.map(place, tree)

    weights = weights_lib.abstract(cfg, jnp.dtype(wanted.dtype), wanted.int8_base)
    weights = jax.tree.map(placed, weights, sharding.shardings(weights, mesh))
    state = jax.eval_shape(
        lambda: step_lib.init_state(
            jnp.zeros((wanted.personas, cfg.num_layers, cfg.d_ff)), learning
        )
    )
    size = wanted.slots
    turn = step_lib.Turn(
        persona=np.zeros(size, np.int32),
        active=np.ones(size, bool),
        step=np.zeros(size, np.int32),
        progress=np.zeros(size, np.float32),
        learning_rate=np.zeros(size, np.float32),
    )
    whole = sharding.replicated(mesh)
    slots = jax.tree.map(lambda x: np.stack([x] * size), batch)
    return (
        placed(state, whole),
        weights_lib.decoder_of(cfg, weights),
        placed(slots, sharding.slot_rows(mesh)),
        placed(turn, whole),
    )

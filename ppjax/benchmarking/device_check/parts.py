"""The parts of a check, in the order of what is wanted most."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from ppjax.benchmarking.device_check import (
    equality,
    inference,
    kernels,
    machine,
    steps,
    torch_steps,
)
from ppjax.benchmarking.device_check import sizes as sizes_lib
from ppjax.models import fused_attention


@dataclasses.dataclass(frozen=True)
class Part:
    """One part, which runs in a process of its own.

    Attributes:
        name: in the file.
        seconds: that it may take.
        measure: (sizes, figures of the parts before) -> figures.
        environment: variables of its process.
        device: what it runs on, as `machine.device` says it.
    """

    name: str
    seconds: float
    measure: Callable[[sizes_lib.Sizes, dict[str, Any]], dict[str, Any]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: Callable[[], dict[str, Any]] = machine.device


def _of_torch(
    name: str,
    seconds: float,
    measure: Callable[[sizes_lib.Sizes, dict[str, Any]], dict[str, Any]],
) -> Part:
    # JAX must not look for the GPU there, of which it would take nearly all memory.
    return Part(name, seconds, measure, device=torch_steps.device)


PARTS = (
    Part('machine', 90, machine.measure),
    Part('equality', 75, equality.measure),
    Part('mask_step_3b', 75, steps.measure_3b),
    Part('mask_step_8b', 75, steps.measure_8b),
    _of_torch('pytorch_mask_step_3b', 60, torch_steps.measure_3b),
    Part('mask_step_32b', 90, steps.measure_32b),
    Part('scoring_3b', 60, inference.scoring),
    Part('generation_3b', 75, inference.generation),
    # How long compiling takes nobody knows before.
    _of_torch('pytorch_mask_step_3b_compiled', 120, torch_steps.measure_3b_compiled),
    Part(
        'mask_step_3b_fused_attention',
        60,
        steps.measure_fused,
        {fused_attention.VARIABLE: '1'},
    ),
    _of_torch('pytorch_mask_step_8b', 60, torch_steps.measure_8b),
    Part('kernels', 45, kernels.measure),
    Part('mask_step_3b_nothing_recomputed', 60, steps.measure_kept),
    _of_torch('pytorch_mask_step_8b_compiled', 120, torch_steps.measure_8b_compiled),
)

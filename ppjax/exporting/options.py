"""The settings of what writes a model: its precision, and how it is checked."""

from typing import Any

from ppjax.base import flags
from ppjax.exporting import hf_export

# What chooses among Neeko's blocks (`recovery.neeko.gate`).
NEAREST, MIXTURE = 'nearest', 'mixture'
# A persona with a block has a cosine of 1 with it, and the texts of two RoleBench roles
# one of 0.85 (SmolLM2-135M): a mixture then still has 0.999 of the persona's own.
GATE_TEMPERATURE = 0.02


def export_dtype_setting(model: str = 'the base model') -> Any:
    """A field for --export_dtype.

    Args:
        model: whose precision is the default.
    """
    return flags.setting(
        None,
        f'Precision of the exported weights; by default the one that {model} is '
        'stored in, or float32 if that is quantised.',
        choices=tuple(hf_export.DTYPES),
    )


def verify_setting(default: bool, compared: str = '') -> Any:
    """A field for --verify.

    Args:
        default: whether it is done unasked.
        compared: with what, as in "with the refitted model's".
    """
    logits = f'logits {compared}'.strip()
    return flags.setting(
        default,
        'Reload the export in fresh processes, with ppjax and (if PyTorch is '
        f'installed) transformers, and compare {logits}.',
    )


def verify_tolerance_setting() -> Any:
    """A field for --verify_tolerance, beside --verify."""
    return flags.setting(
        # Of a refitted SmolLM2-135M, whose logits reach 37, PyTorch's float32 is off by
        # 0.8e-3 from its float64, and ours by 1.6e-3; without one of its channels, any
        # of 16 drawn, it is off by 0.27 at least.
        1e-2,
        'Largest absolute difference of float32 logits that --verify accepts (of '
        'log-probabilities, in a float32 GGUF file).',
        within='(0, 1000000]',
    )

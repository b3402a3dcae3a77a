"""What differs between GGUF and Hugging Face, for reading and writing alike.

Names of architectures and tensors, the order of rows, and Llama 3's scaled rotary
frequencies.

Source: llama.cpp's convert_hf_to_gguf.
"""

import gguf
import numpy as np

from ppjax.models import config as config_lib
from ppjax.models import loading, rope

# GGUF's architecture -> the class of transformers that computes it.
ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
}
# Of the first two, with blocks of different sizes.
UNEVEN = 'deci'
_PERMUTED = ('llama', UNEVEN)
ROPE_FREQS = 'rope_freqs.weight'
# JSON of Hugging Face's rotary settings: GGUF stores only what comes of them.
ROPE_PARAMETERS = 'ppjax.rope_parameters'


def hf_names(layers: int) -> dict[str, str]:
    """GGUF's name of every tensor that we know -> Hugging Face's, layer by layer."""
    # Of one layer, and of the architecture that has all of them.
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 1)
    weights = (*loading.TOP_WEIGHTS.values(), *loading.BLOCK_WEIGHTS.values())
    known = [weight.hf_name for weight in weights]
    stored = [table.get_name(name.format(0), ('.weight', '.bias')) for name in known]
    return {
        name.replace('blk.0.', f'blk.{layer}.'): hf_name.format(layer)
        for layer in range(layers)
        for name, hf_name in zip(stored, known, strict=True)
        if name is not None  # A rotated model's own, of which GGUF knows nothing.
    }


def permuted_heads(arch: str, hf_name: str, *, rows: int, head_dim: int) -> int | None:
    """Heads of a tensor whose rows GGUF has in another order, else None."""
    is_turned = hf_name.split('.')[-2] in ('q_proj', 'k_proj')
    return rows // head_dim if arch in _PERMUTED and is_turned else None


def hf_rows(num_rows: int, heads: int) -> np.ndarray:
    """[rows]: which row of GGUF's is each of Hugging Face's, of a q or k projection.

    Hugging Face rotates row j of a head with row j + H/2, llama.cpp row 2j with
    row 2j + 1, so its converter interleaves the halves of every head.
    """
    halves = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
    return halves.swapaxes(1, 2).reshape(num_rows)


def gguf_rows(num_rows: int, heads: int) -> np.ndarray:
    """[rows]: which row of Hugging Face's is each of GGUF's; undoes `hf_rows`."""
    return np.argsort(hf_rows(num_rows, heads))


def rope_factors(
    head_dim: int, theta: float, scaling: config_lib.Llama3Scaling
) -> np.ndarray:
    """float32 [H/2]: what each rotary frequency is divided by."""
    unscaled = rope.inverse_frequencies(head_dim, theta, None)
    return unscaled / rope.inverse_frequencies(head_dim, theta, scaling)

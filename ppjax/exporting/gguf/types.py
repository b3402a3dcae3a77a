"""The types that GGUF files are written in, and what each tensor becomes."""

from collections.abc import Sequence
import dataclasses

import gguf

from ppjax.base import errors
from ppjax.models import gguf_blocks, loading

Type = gguf.GGMLQuantizationType

# What the gguf package quantises, by the name of --gguf. The K and IQ types it does not.
TYPES = {
    'f32': Type.F32,
    'f16': Type.F16,
    'bf16': Type.BF16,
    'q8_0': Type.Q8_0,
    'q5_1': Type.Q5_1,
    'q5_0': Type.Q5_0,
    'q4_1': Type.Q4_1,
    'q4_0': Type.Q4_0,
}
FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    Type.Q5_1: gguf.LlamaFileType.MOSTLY_Q5_1,
    Type.Q5_0: gguf.LlamaFileType.MOSTLY_Q5_0,
    Type.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
    Type.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}
# Rows of K-quants are whole super-blocks.
SUPER_BLOCK = 256
_EMBEDDING, _HEAD = (loading.TOP_WEIGHTS[x].hf_name for x in ('embedding', 'head'))


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    Attributes:
        name: GGUF's.
        hf_name: Hugging Face's.
        shape: of it.
        kind: that it is stored in.
        fallback: whether its rows do not fit the type that was asked for.
    """

    name: str
    hf_name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    fallback: bool = False

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def num_bytes(self) -> int:
        rows = self.shape[0] if len(self.shape) == 2 else 1
        return rows * self.row_bytes


def planned(
    name: str,
    hf_name: str,
    shape: tuple[int, ...],
    wanted: gguf.GGMLQuantizationType,
    *,
    tied: bool,
) -> Planned:
    """What a tensor becomes in a file of a type.

    Norms and biases stay float32. A row that is no number of whole blocks becomes
    float16, as llama.cpp's quantiser has it. The unembedding has 8 bits at least: that
    quantiser keeps it at Q6_K or, where rows do not fit that, Q8_0.

    Args:
        name: GGUF's.
        hf_name: Hugging Face's.
        shape: of it.
        wanted: of the file.
        tied: whether the embedding is the unembedding.
    """
    if len(shape) == 1:
        return Planned(name, hf_name, shape, Type.F32)
    kind = wanted
    if hf_name == (_EMBEDDING if tied else _HEAD) and wanted not in gguf_blocks.PLAIN:
        kind = Type.Q8_0
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return Planned(name, hf_name, shape, Type.F16, fallback=True)
    return Planned(name, hf_name, shape, kind)


def asked(text: str) -> tuple[str, ...]:
    """Reads --gguf: types with commas between them, each once.

    Raises:
        InputError: for a type that is not written.
    """
    found = tuple(dict.fromkeys(name.strip().lower() for name in text.split(',')))
    for name in found:
        if name in TYPES:
            continue
        other = ''
        if name.startswith(('q', 'iq', 'tq')):
            other = (
                ' llama.cpp makes others of --gguf=f16: llama-quantize '
                f'FILE-F16.gguf FILE.gguf {name.upper()}'
            )
        raise errors.InputError(
            f'--gguf: {name!r} is not written; there are {", ".join(TYPES)}.{other}'
        )
    return found


def remarks(plan: Sequence[Planned], wanted: gguf.GGMLQuantizationType) -> list[str]:
    """What a user should know of a file: what fell back, and why."""
    fallen = [tensor for tensor in plan if tensor.fallback]
    if not fallen:
        return []
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    by_kind: dict[tuple[str, int], int] = {}
    for tensor in fallen:
        stem = '.'.join(part for part in tensor.name.split('.') if not part.isdecimal())
        key = (stem, tensor.shape[-1])
        by_kind[key] = by_kind.get(key, 0) + 1
    named = ', '.join(
        f'{stem} ({count} of rows of {length})'
        for (stem, length), count in by_kind.items()
    )
    return [
        f'F16 in place of {wanted.name}, whose blocks have {block} entries: {named}.'
    ]


def advice(hidden: int, d_ff: int) -> list[str]:
    """What K-quants will make of a model's rows."""
    found = []
    fallbacks = 'Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0'
    if d_ff % SUPER_BLOCK:
        found.append(
            f'intermediate_size {d_ff} is no multiple of {SUPER_BLOCK}: K-quants of '
            f'ffn_down fall back ({fallbacks}). A mask of --align={SUPER_BLOCK} avoids '
            'that.'
        )
    if hidden % SUPER_BLOCK:
        found.append(
            f'hidden_size {hidden} is no multiple of {SUPER_BLOCK}: K-quants of all '
            f'other matrices fall back ({fallbacks}), whatever a mask keeps.'
        )
    return found

"""GGUF files that are written, read back by us and by the package of the format."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.exporting.gguf import metadata, types, writing
from ppjax.models import base_model, gguf_names, gguf_reader, loading, sliced

_ORIGIN = metadata.Origin(
    base='owner/Base-1B',
    persona='bram',
    license={'license': 'other', 'license_name': 'mine', 'license_link': 'LICENSE'},
    system_prompt='You are Bram.',
    identity={'mask_sha256': '0'},
    greeting='Ahoy.',
)


def _write(model: base_model.BaseModel, path: pathlib.Path, kind: str) -> list[Any]:
    wanted = types.TYPES[kind]
    plan = writing.plan(model, wanted)
    keys = metadata.of_model(model, wanted) | metadata.of_origin(_ORIGIN, model, kind)
    writing.write(path, model, keys, plan)
    return plan


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_float32_reads_back_as_it_was(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    family: str,
) -> None:
    model = tiny_chat(family)
    path = tmp_path / 'm.gguf'
    _write(model, path, 'f32')
    reader = gguf_reader.GgufReader(path)
    assert loading.config_of(reader) == model.config
    assert reader.names() == model.reader.names()
    assert ('output.weight' in {t.name for t in gguf.GGUFReader(path).tensors}) == (
        not model.config.tie_embeddings
    )
    for name in reader.names():
        np.testing.assert_array_equal(reader.read(name), model.reader.read(name))


def test_rows_are_in_the_order_of_llama_cpp(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    model = tiny_chat('llama')
    _write(model, tmp_path / 'm.gguf', 'f32')
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / 'm.gguf').tensors}
    half = model.config.head_dim // 2
    for part in ('weight', 'bias'):
        own = model.reader.read(f'model.layers.1.self_attn.k_proj.{part}')
        found = stored[f'blk.1.attn_k.{part}'].data
        # Of the second head: its first row, the first of its second half, the second.
        first = 2 * half
        for place, row in ((0, first), (1, first + half), (2, first + 1)):
            np.testing.assert_array_equal(found[first + place], own[row])
    factors = stored['rope_freqs.weight'].data
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(3)
    assert 1 < factors[3] < 3


@pytest.mark.parametrize('kind', [k for k in types.TYPES if k != 'f32'])
def test_matrices_are_rounded_and_vectors_are_not(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path, kind: str
) -> None:
    model = tiny_chat('llama')
    _write(model, tmp_path / 'm.gguf', kind)
    wanted = types.TYPES[kind]
    for tensor in gguf.GGUFReader(tmp_path / 'm.gguf').tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            assert tensor.tensor_type == types.Type.F32
            continue
        is_head = tensor.name == 'output.weight' and kind.startswith('q')
        assert tensor.tensor_type == (types.Type.Q8_0 if is_head else wanted)
        if tensor.name == 'blk.0.ffn_down.weight':
            own = model.reader.read('model.layers.0.mlp.down_proj.weight')
            raw = gguf.quants.quantize(own, wanted)
            want = gguf.quants.dequantize(raw, wanted)
            np.testing.assert_array_equal(found, want)
    reader = gguf_reader.GgufReader(tmp_path / 'm.gguf')
    own = model.reader.read('model.layers.1.self_attn.q_proj.weight')
    raw = gguf.quants.quantize(own, wanted)
    np.testing.assert_array_equal(
        reader.read('model.layers.1.self_attn.q_proj.weight').astype(np.float32),
        gguf.quants.dequantize(raw, wanted),
    )


def test_rows_that_are_no_blocks_become_float16_and_are_named(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    base = tiny_chat('qwen2')
    mask = np.zeros((2, 96), bool)
    mask[:, :40] = True
    model = sliced.sliced_model(base, mask)
    plan = _write(model, tmp_path / 'm.gguf', 'q4_0')
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / 'm.gguf').tensors}
    assert stored['blk.0.ffn_down.weight'].tensor_type == types.Type.F16
    assert stored['blk.0.ffn_up.weight'].tensor_type == types.Type.Q4_0
    # Tied: the embedding is the unembedding.
    assert stored['token_embd.weight'].tensor_type == types.Type.Q8_0
    [said] = types.remarks(plan, types.Type.Q4_0)
    assert 'blk.ffn_down.weight (2 of rows of 40)' in said
    assert 'ffn_up' not in said
    np.testing.assert_array_equal(
        gguf_reader.GgufReader(tmp_path / 'm.gguf').read(
            'model.layers.1.mlp.down_proj.weight'
        ),
        base.reader.read('model.layers.1.mlp.down_proj.weight')[:, :40].astype('f2'),
    )
    assert not types.remarks(writing.plan(base, types.Type.Q4_0), types.Type.Q4_0)


def test_what_a_file_says_of_itself(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    _write(tiny_chat('llama'), tmp_path / 'm.gguf', 'bf16')
    metadata_of = gguf_reader.GgufReader(tmp_path / 'm.gguf').metadata
    wanted = {
        'general.architecture': 'llama',
        'general.name': 'Base-1B-bram',
        'general.file_type': 32,
        'general.quantization_version': 2,
        'general.base_model.count': 1,
        'general.base_model.0.name': 'Base-1B',
        'general.base_model.0.organization': 'owner',
        'general.base_model.0.repo_url': 'https://huggingface.co/owner/Base-1B',
        'general.license': 'other',
        'general.license.name': 'mine',
        'general.license.link': 'LICENSE',
        'persona.name': 'bram',
        'persona.system_prompt': 'You are Bram.',
        'persona.greeting': 'Ahoy.',
        'llama.attention.key_length': 24,
        'llama.rope.dimension_count': 24,
    }
    assert {key: metadata_of(key) for key in wanted} == wanted
    assert json.loads(metadata_of('persona.identity')) == {
        'mask_sha256': '0',
        'system_prompt': 'You are Bram.',
        'type': 'bf16',
    }
    assert metadata_of('llama.rope.scaling.type') is None


def test_memory_is_bounded(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_chat('llama')
    _write(model, tmp_path / 'whole.gguf', 'q8_0')
    monkeypatch.setattr(writing, '_PIECE_ENTRIES', 64 * 30)
    seen = []
    read = type(model.reader).read

    def spied(own: Any, name: str, rows: slice = slice(None)) -> np.ndarray:
        found = read(own, name, rows)
        seen.append(found.size)
        return found

    monkeypatch.setattr(type(model.reader), 'read', spied)
    _write(model, tmp_path / 'parts.gguf', 'q8_0')
    assert max(seen) <= 64 * 30
    whole = (tmp_path / 'whole.gguf').read_bytes()
    assert (tmp_path / 'parts.gguf').read_bytes() == whole


def test_numbers_too_large_for_a_type(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_chat('qwen3')
    read = type(model.reader).read

    def large(own: Any, name: str, rows: slice = slice(None)) -> np.ndarray:
        return read(own, name, rows) * (1e6 if 'up_proj' in name else 1)

    monkeypatch.setattr(type(model.reader), 'read', large)
    for kind in ('f16', 'q4_0'):
        with pytest.raises(errors.InputError, match=r'up_proj.*too large.*bf16 or f32'):
            _write(model, tmp_path / f'{kind}.gguf', kind)
    for kind in ('f32', 'bf16'):
        _write(model, tmp_path / f'{kind}.gguf', kind)


@pytest.mark.parametrize(('heads', 'rows'), [(1, 10), (3, 12), (4, 96)])
def test_orders_of_rows_undo_each_other(heads: int, rows: int) -> None:
    there = gguf_names.gguf_rows(rows, heads)
    back = gguf_names.hf_rows(rows, heads)
    np.testing.assert_array_equal(there[back], np.arange(rows))


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('q4_k_m', r"'q4_k_m' is not written; there are f32.*llama-quantize.* Q4_K_M"),
        ('f16,iq4_xs', r"'iq4_xs' is not written"),
        ('f64', r"'f64' is not written; there are [^.]*\.$"),
        ('', 'is not written'),
    ],
)
def test_types_that_are_not_written(text: str, said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        types.asked(text)


def test_types_are_read() -> None:
    assert types.asked('Q8_0, f16,q8_0') == ('q8_0', 'f16')


def test_advice_on_super_blocks() -> None:
    assert types.advice(2048, 1024) == []
    narrow, deep = types.advice(576, 1152)
    assert '1152' in narrow
    assert '--align=256' in narrow
    assert '576' in deep
    assert '--align' not in deep

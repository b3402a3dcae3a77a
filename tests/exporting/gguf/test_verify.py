"""Files in llama.cpp, and what is found wrong with those that are."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.exporting.gguf import (
    llama_cpp,
    metadata,
    types,
    verify,
    vocabulary,
    writing,
)
from ppjax.models import base_model, gguf_names

_PROMPT = "You are Bram, it's 12 1212 x'DQ, 日本語."
_ORIGIN = metadata.Origin('owner/Base', 'bram', {}, _PROMPT, {})

needs_llama_cpp = pytest.mark.skipif(
    not llama_cpp.is_installed(), reason='llama.cpp is in the wheel of xllamacpp'
)


def _write(model: base_model.BaseModel, path: pathlib.Path, kind: str) -> list[Any]:
    wanted = types.TYPES[kind]
    plan = writing.plan(model, wanted)
    keys = metadata.of_model(model, wanted) | metadata.of_origin(_ORIGIN, model, kind)
    keys |= vocabulary.metadata(model.tokenizer(), model.config.vocab_size)
    writing.write(path, model, keys, plan)
    return plan


def _verifier(model: base_model.BaseModel) -> verify.Verifier:
    return verify.Verifier(model, model.tokenizer(), _PROMPT, tolerance=1e-3)


@needs_llama_cpp
@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_float32_says_the_same_in_llama_cpp(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    family: str,
) -> None:
    model = tiny_chat(family)
    path = tmp_path / 'm.gguf'
    plan = _write(model, path, 'f32')
    verifier = _verifier(model)
    verifier.check_tokens(path)
    found = verifier.verify(path, plan)  # Which refuses other answers and ids.
    assert 'llama.cpp' in found.by
    assert found.prompt_tokens > 50
    assert found.tokens == 32
    assert found.first_difference is not None
    assert found.first_difference < 1e-3
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.same_top == 1
    assert '100.0%' in found.line()


@needs_llama_cpp
def test_quantised_files_answer_and_are_measured(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    model = tiny_chat('qwen2')
    verifier = _verifier(model)
    kls = []
    for kind in ('q8_0', 'q4_0'):
        plan = _write(model, tmp_path / 'm.gguf', kind)
        found = verifier.verify(tmp_path / 'm.gguf', plan)
        assert found.tokens > 0
        assert found.kl is not None
        kls.append(found.kl)
        assert f'KL {found.kl:.5f}' in found.line()
    assert 1e-6 < kls[0] < kls[1]


@needs_llama_cpp
def test_wrong_files_are_found_out(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_chat('llama')
    path = tmp_path / 'm.gguf'
    with monkeypatch.context() as patch:
        # As a converter would write them that has never heard of it.
        patch.setattr(gguf_names, 'gguf_rows', lambda rows, heads: np.arange(rows))
        plan = _write(model, path, 'f32')
    with pytest.raises(errors.InputError, match='first token differ'):
        _verifier(model).verify(path, plan)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(errors.InputError, match=r'cannot be loaded by llama\.cpp: .+'):
        _verifier(model).verify(path, plan)


@needs_llama_cpp
def test_another_splitting_is_found_out(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_chat('qwen2')
    monkeypatch.setattr(vocabulary.gguf_pre, 'name_of', lambda rules: 'gpt-2')
    plan = _write(model, tmp_path / 'm.gguf', 'f32')
    verifier = _verifier(model)
    for look in (verifier.check_tokens, lambda path: verifier.verify(path, plan)):
        with pytest.raises(errors.InputError, match=r'other tokens of a conv.* token '):
            look(tmp_path / 'm.gguf')


@pytest.mark.parametrize('kind', ['f32', 'q5_1'])
def test_without_llama_cpp_every_tensor_is_read_back(
    tiny_chat: Callable[[str], base_model.BaseModel],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(llama_cpp, 'is_installed', lambda: False)
    model = tiny_chat('llama')
    path = tmp_path / 'm.gguf'
    plan = _write(model, path, kind)
    found = _verifier(model).verify(path, plan)
    assert found.by == 'ppjax'
    assert found.rounding is not None
    assert (found.rounding == 0) if kind == 'f32' else (0.01 < found.rounding < 0.1)
    assert 'read back' in found.line()
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    with pytest.raises(errors.InputError, match='reads back otherwise'):
        _verifier(model).verify(path, plan)


def test_constants_are_read_back(
    tiny_chat: Callable[[str], base_model.BaseModel], tmp_path: pathlib.Path
) -> None:
    model = tiny_chat('qwen3')
    _write(model, tmp_path / 'm.gguf', 'f16')
    _verifier(model).check_tokens(tmp_path / 'm.gguf')
    other = dataclasses.replace(
        model, config=dataclasses.replace(model.config, rope_theta=778.0)
    )
    with pytest.raises(errors.InputError, match='otherwise: rope_theta'):
        _verifier(other).check_tokens(tmp_path / 'm.gguf')


def test_divergence_of_known_distributions() -> None:
    ours = np.log([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
    its = np.log([[0.25, 0.5], [0.4, 0.3]])
    answer = llama_cpp.Answer((5,), (1, 3), np.array([[0, 1], [3, 2]]), its)
    found = verify.compared(ours, answer)
    # The two that are not listed count as one of 1/4, and as one of 3/10.
    first = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert found.kl == pytest.approx(first / 2)
    assert found.same_top == 0.5
    assert found.first_difference == pytest.approx(np.log(2))

"""Verification: what it measures, and that it would notice a mistake."""

from collections.abc import Callable
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers

from ppjax.base import errors
from ppjax.exporting import hf_export, verify
from ppjax.models import masks as masks_lib

_TOKENS = np.random.default_rng(2).integers(0, 97, (2, 20))


def _mask(keep: int = 20) -> np.ndarray:
    rng = np.random.default_rng(3)
    mask = np.zeros((3, 52), bool)
    for row in mask:
        row[rng.permutation(52)[:keep]] = True
    return mask


@pytest.fixture
def export(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={'a': 0}, merges=[]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def run(tiny: Any, mask: np.ndarray, dtype: str = 'float32') -> pathlib.Path:
        hf_export.export_pruned(
            tiny.base,
            mask,
            tmp_path / 'out',
            dtype=dtype,
            tokenizer=tokenizer,
            model_card='',
            system_prompt='',
        )
        return tmp_path / 'out'

    return run


def test_a_right_export_passes_in_both_loaders(
    tiny_models: Callable[[str], Any], export: Callable[..., pathlib.Path]
) -> None:
    tiny = tiny_models('llama-scaled')
    target = export(tiny, _mask(), 'bfloat16')
    found = verify.verify(
        tiny.base, masks_lib.Masks(_mask()), target, dtype='bfloat16', tokens=_TOKENS
    )
    assert found.transformers is not None
    assert 0 <= found.ppjax <= 1e-4
    assert 0 <= found.transformers <= 1e-4
    found.require(1e-4)


def test_one_wrong_channel_fails_and_pytorch_may_be_absent(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, 'has_torch', lambda: False)
    tiny = tiny_models('qwen3')
    swapped = _mask()
    row = swapped[1]
    row[np.argmax(row)], row[np.argmin(row)] = False, True
    assert (swapped != _mask()).sum() == 2
    target = export(tiny, swapped)
    found = verify.verify(
        tiny.base, masks_lib.Masks(_mask()), target, dtype='float32', tokens=_TOKENS
    )
    assert found.transformers is None
    with pytest.raises(errors.InputError, match=r'by ppjax, differs .*=0\.001\. '):
        found.require(1e-3)


def test_logits_are_those_of_the_weights_as_exported(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
) -> None:
    tiny = tiny_models('llama-biased')
    want = verify.masked_logits(
        tiny.base, masks_lib.Masks(_mask()), _TOKENS, dtype='float32'
    )
    np.testing.assert_allclose(
        want, tiny.logits(_TOKENS, channels=_mask()), atol=1e-5, rtol=0
    )
    rounded = verify.masked_logits(
        tiny.base, masks_lib.Masks(_mask()), _TOKENS, dtype='bfloat16'
    )
    # Not rounding first would fail every bfloat16 export.
    assert np.max(np.abs(rounded - want)) > 1e-2
    target = export(tiny, _mask(), 'bfloat16')
    for loader in verify._LOADERS.values():
        got = loader(str(target), _TOKENS)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, rounded, atol=1e-4, rtol=0)


def test_a_directory_that_cannot_be_reloaded_is_one_clear_error(
    tiny_models: Callable[[str], Any], export: Callable[..., pathlib.Path]
) -> None:
    target = export(tiny_models('llama'), _mask())
    (target / 'model.safetensors').unlink()
    with pytest.raises(errors.InputError, match=r'reloaded by ppjax: .*neither') as e:
        verify.reloaded_logits(target, _TOKENS, loader='ppjax')
    assert '\n' not in str(e.value)


def test_weights_that_transformers_would_invent_are_refused(
    tiny_models: Callable[[str], Any], export: Callable[..., pathlib.Path]
) -> None:
    target = export(tiny_models('llama-biased'), _mask())
    config = json.loads((target / 'config.json').read_text())
    config['mlp_bias'] = False
    (target / 'config.json').write_text(json.dumps(config))
    with pytest.raises(errors.InputError, match=r'unexpected_keys.*mlp\.down_proj\.b'):
        verify._by_transformers(str(target), _TOKENS)


@pytest.mark.parametrize(
    ('found', 'passes'),
    [
        (verify.Verification(1e-3, 1e-3), True),
        (verify.Verification(1e-3, None), True),
        (verify.Verification(1e-3, 2e-3), False),
        (verify.Verification(2e-3, None), False),
        (verify.Verification(math.nan, None), False),
        (verify.Verification(0.0, math.inf), False),
    ],
)
def test_require(found: verify.Verification, passes: bool) -> None:
    if passes:
        found.require(1e-3)
    else:
        with pytest.raises(errors.InputError, match=r'verify_tolerance=0\.001'):
            found.require(1e-3)


def test_the_dense_model_is_compared_with_transformers_too(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(path: Any, tokens: np.ndarray, *, loader: str) -> np.ndarray:
        return verify._LOADERS[loader](str(path), tokens)

    monkeypatch.setattr(verify, 'reloaded_logits', here)
    tiny = tiny_models('llama-tied')
    target = export(tiny, _mask())

    def found() -> verify.Verification:
        return verify.verify(
            tiny.base, masks_lib.Masks(_mask()), target, dtype='float32', tokens=_TOKENS
        )

    right = found()
    assert right.dense is not None
    assert 0 < right.dense <= 1e-4
    right.require(1e-4)

    # Misread: our export says what we read, so it alone passes.
    logits = verify.masked_logits

    def misread(base: Any, masks: Any, *rest: Any, **options: Any) -> np.ndarray:
        off = 0 if masks.digest() else 0.5
        return logits(base, masks, *rest, **options) + off

    monkeypatch.setattr(verify, 'masked_logits', misread)
    wrong = found()
    assert max(v for v in wrong.of_export().values() if v is not None) <= 1e-4
    with pytest.raises(errors.InputError, match=r'base model, loaded by transformers'):
        wrong.require(1e-3)

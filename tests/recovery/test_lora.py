"""Adapters: what they change, what is trained, and PEFT's own opinion of them."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.models import attention, loading, weights
from ppjax.models import masks as masks_lib
from ppjax.recovery import lora, methods, peft_files

_RANK, _ALPHA = 3, 7


def _adapters(tiny: Any, targets: Any = tuple(lora.TARGETS)) -> lora.Adapters:
    """With a B that is not zero."""
    found = lora.init_adapters(tiny.config, targets, _RANK, jax.random.key(1))
    rng = np.random.default_rng(2)
    for pair in found.values():
        noise = rng.normal(size=pair['b'].shape) * 0.1
        pair['b'] = jnp.asarray(noise, jnp.float32)
    return found


def _tokens() -> np.ndarray:
    return np.random.default_rng(4).integers(3, 97, (2, 17))


def _logits(model: Any, tokens: np.ndarray, **options: Any) -> np.ndarray:
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _, _ = model(
        tokens, positions, masks_lib.DENSE, attention.causal(*tokens.shape), **options
    )
    return np.asarray(model.unembed(hidden))


def _merged(tiny: Any, adapters: lora.Adapters) -> Any:
    reader = lora.MergedReader(tiny.base.reader, adapters, _ALPHA / _RANK)
    return loading.load_decoder(reader, tiny.config, dtype=jnp.float32)


def test_fresh_adapters_change_nothing(tiny_models: Callable[[str], Any]) -> None:
    tiny = tiny_models('llama')
    fresh = lora.init_adapters(
        tiny.config, list(lora.TARGETS), _RANK, jax.random.key(0)
    )
    adapted = lora.adapt(tiny.decoder, fresh, 2.0)
    np.testing.assert_array_equal(
        _logits(adapted, _tokens()), _logits(tiny.decoder, _tokens())
    )
    assert {name: pair['a'].shape for name, pair in fresh.items()} == {
        name: (3, rows, _RANK) for name, (rows, _) in lora.widths(tiny.config).items()
    }
    # Kaiming-uniform: within 1 / sqrt(in), and about that wide.
    widest = np.abs(fresh['w_down']['a']).max() * np.sqrt(52)
    assert 0.9 < widest <= 1
    assert not np.array_equal(fresh['w_q']['a'], fresh['w_k']['a'])


@pytest.mark.parametrize('name', ['llama-biased', 'qwen3-tied'])
def test_merged_weights_are_adapters_unmerged(
    tiny_models: Callable[[str], Any], name: str
) -> None:
    tiny = tiny_models(name)
    adapters = _adapters(tiny)
    unmerged = _logits(lora.adapt(tiny.decoder, adapters, _ALPHA / _RANK), _tokens())
    merged = _logits(_merged(tiny, adapters), _tokens())
    np.testing.assert_allclose(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert np.abs(unmerged - _logits(tiny.decoder, _tokens())).max() > 0.1


def test_merging_piecewise_is_merging_whole(tiny_models: Callable[[str], Any]) -> None:
    tiny = tiny_models('llama')
    reader = lora.MergedReader(tiny.base.reader, _adapters(tiny), 2.0)
    name = 'model.layers.1.mlp.down_proj.weight'
    whole = reader.read(name)
    pieces = [reader.read(name, slice(i, i + 5)) for i in range(0, 24, 5)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-6)
    assert reader.shape(name) == whole.shape
    untouched = 'model.norm.weight'
    np.testing.assert_array_equal(
        reader.read(untouched), tiny.base.reader.read(untouched)
    )


@pytest.mark.parametrize('targets', [tuple(lora.TARGETS), ('v_proj', 'down_proj')])
def test_peft_loads_them_and_agrees(
    tiny_models: Callable[[str], Any],
    tmp_path: pathlib.Path,
    targets: tuple[str, ...],
) -> None:
    tiny = tiny_models('qwen2')
    adapters = _adapters(tiny, targets)
    peft_files.save(
        tmp_path / 'adapter',
        adapters,
        alpha=_ALPHA,
        targets=targets,
        base_name='someone/base',
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.path, dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
    with torch.no_grad():
        theirs = model(torch.tensor(_tokens())).logits.numpy()
    ours = _logits(lora.adapt(tiny.decoder, adapters, _ALPHA / _RANK), _tokens())
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(ours - tiny.hf_logits(_tokens())).max() > 0.05
    trained = sum(p.numel() for n, p in model.named_parameters() if 'lora_' in n)
    assert trained == sum(x.size for x in jax.tree.leaves(adapters))
    config = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == 'someone/base'


def test_only_adapters_are_trained(
    tiny_models: Callable[[str], Any], run_steps: Callable[..., Any]
) -> None:
    tiny = tiny_models('llama')
    trial = run_steps(tiny, rank=_RANK, rate=1e-2)
    assert set(trial.state.trained) == {'adapters'}
    for ours, before in zip(
        jax.tree.leaves(trial.frozen),
        jax.tree.leaves(weights.weights_of(tiny.decoder)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, before)
    adapters = trial.state.trained['adapters']
    assert adapters.keys() == lora.widths(tiny.config).keys()
    for name, pair in adapters.items():
        assert np.abs(pair['b']).max() > 1e-3, name


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_gradient_or_copy_of_frozen_weights_is_formed(
    tiny_models: Callable[[str], Any], equations: Callable[..., Any], dtype: str
) -> None:
    tiny = tiny_models('llama')
    method = methods.LoraFinetuning(tiny.config, 2.0)
    frozen = jax.tree.map(lambda x: x.astype(dtype), weights.weights_of(tiny.decoder))
    trained = {'adapters': _adapters(tiny)}
    tokens = _tokens()

    def loss(trained: Any, frozen: Any) -> jax.Array:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        attend = attention.causal(*tokens.shape)
        hidden, _, _ = method.model(trained, frozen)(
            tokens, positions, masks_lib.DENSE, attend, remat='dots'
        )
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)))

    def made(function: Any) -> set[tuple[int, ...]]:
        names = ('dot_general', 'scatter-add', 'add_any', 'add', 'mul')
        return {
            tuple(sorted(variable.aval.shape))
            for equation in equations(function, trained, frozen)
            if equation.primitive.name in names
            for variable in equation.outvars
        }

    single = {tuple(sorted(pair)) for pair in lora.widths(tiny.config).values()}
    stacked = {tuple(sorted((3, *pair))) for pair in single}
    table = (24, 97)
    assert not made(jax.grad(loss)) & (single | stacked | {table})
    # They are where the weights are differentiated.
    assert made(jax.grad(loss, argnums=(0, 1))) >= single | {table}


def test_a_rank_beyond_a_target_names_both(tiny_models: Callable[[str], Any]) -> None:
    cfg = tiny_models('llama').config
    with pytest.raises(errors.InputError, match=r'--lora_rank=21 .* k_proj .*24 x 20'):
        lora.init_adapters(cfg, ['q_proj', 'k_proj'], 21, jax.random.key(0))
    lora.init_adapters(cfg, ['q_proj'], 21, jax.random.key(0))


def test_targets() -> None:
    assert lora.parse_targets('v_proj, q_proj,v_proj') == ('v_proj', 'q_proj')
    assert set(lora.TARGETS.values()) == {
        'w_q', 'w_k', 'w_v', 'w_o', 'w_gate', 'w_up', 'w_down'
    }  # fmt: skip
    for text in ('q_proj,embed_tokens', '', 'q_proj,'):
        with pytest.raises(errors.InputError, match=r'no .*; there are q_proj, '):
            lora.parse_targets(text)

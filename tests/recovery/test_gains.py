"""Recovery by gains: their steps against PyTorch, what is formed, what a run leaves."""

from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppjax import demo
from ppjax.base import errors
from ppjax.masking import gain_files
from ppjax.models import attention, base_model, weights
from ppjax.models import masks as masks_lib
from ppjax.recovery import config, gains, loop, methods

# Of `run_steps`.
STEPS = 3
_RATE = 2e-2
_KINDS = ('channels', 'attention', 'attn_norm', 'ffn_norm', 'final_norm')


def _scaled(own: dict[str, torch.Tensor], weights: dict[str, Any]) -> dict[str, Any]:
    """transformers' weights with gains multiplied in."""
    found = {'model.norm.weight': weights['model.norm.weight'] * own['final_norm']}
    for layer in range(len(own['channels'])):
        for name, gain in (
            ('mlp.down_proj', 'channels'),
            ('self_attn.o_proj', 'attention'),
            ('input_layernorm', 'attn_norm'),
            ('post_attention_layernorm', 'ffn_norm'),
        ):
            name = f'model.layers.{layer}.{name}.weight'
            found[name] = weights[name] * own[gain][layer]
    return found


def test_steps_are_pytorchs(
    tiny_models: Callable[[str], Any],
    run_steps: Callable[..., Any],
    make_examples: Callable[..., Any],
    hf_answer_nll: Callable[..., torch.Tensor],
) -> None:
    """Adam without decay on gains alone."""
    tiny = tiny_models('qwen2-tied')
    ours = run_steps(tiny, gains=True, rate=_RATE)
    own = {
        name: torch.ones(masks_lib.shapes(tiny.config)[name], requires_grad=True)
        for name in _KINDS
    }
    optimizer = torch.optim.Adam(own.values())
    frozen = {name: x.detach() for name, x in tiny.hf.named_parameters()}

    def call(*args: Any, **options: Any) -> Any:
        changed = _scaled(own, frozen)
        return torch.func.functional_call(tiny.hf, changed, args, options)

    examples = make_examples(24, prefix=6)
    for number in range(STEPS):
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * number / STEPS))
        optimizer.param_groups[0]['lr'] = rate
        loss = hf_answer_nll(call, [examples[8 * number + i] for i in range(8)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert ours.metrics[number].loss == pytest.approx(loss.item(), rel=1e-5)
        norm = math.sqrt(sum((x.grad**2).sum().item() for x in own.values()))
        assert ours.metrics[number].grad_norm == pytest.approx(norm, rel=1e-4)
    assert ours.state.trained.keys() == {'gains'}
    assert ours.state.trained['gains'].keys() == own.keys()
    for name, values in ours.state.trained['gains'].items():
        moved, want = values - 1, own[name].detach().numpy() - 1
        assert np.linalg.norm(moved - want) <= 1e-3 * np.linalg.norm(want), name
        # Adam's first step moves each by the rate.
        assert 0.5 < np.abs(moved).max() / _RATE < 3, name
    before = jax.tree.leaves(weights.weights_of(tiny.decoder))
    for value, same in zip(jax.tree.leaves(ours.frozen), before, strict=True):
        np.testing.assert_array_equal(value, same)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_gradient_or_copy_of_frozen_weights_is_formed(
    tiny_models: Callable[[str], Any], equations: Callable[..., Any], dtype: str
) -> None:
    tiny = tiny_models('llama')
    method = methods.GainFinetuning(tiny.config)
    frozen = jax.tree.map(lambda x: x.astype(dtype), weights.weights_of(tiny.decoder))
    trained = {'gains': gains.init_gains(tiny.config, list(gains.TARGETS))}
    tokens = np.random.default_rng(4).integers(3, 97, (2, 17))

    def loss(trained: Any, frozen: Any) -> jax.Array:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        attend = attention.causal(*tokens.shape)
        hidden, _, _ = method.model(trained, frozen)(
            tokens, positions, method.masks(trained), attend, remat='dots'
        )
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)))

    made = {
        tuple(sorted(variable.aval.shape))
        for equation in equations(jax.grad(loss), trained, frozen)
        if equation.primitive.name in ('dot_general', 'scatter-add', 'add_any', 'mul')
        for variable in equation.outvars
    }
    shapes = [x.shape for x in frozen['blocks'].values() if x.ndim == 3]
    matrices = {tuple(sorted(own[i:])) for own in shapes for i in (0, 1)}
    assert not made & matrices
    for value in jax.tree.leaves(jax.grad(loss)(trained, frozen)):
        assert value.dtype == jnp.float32


def _settings(files: Any, output: pathlib.Path, **changes: Any) -> Any:
    values = {
        'calibration': str(files[0]),
        'heldout': str(files[1]),
        'output_dir': str(output),
        'gains': True,
        'batch_size': 4,
        'steps': 4,
        'checkpoint_every': 2,
        'mesh': 'data:2,fsdp:4',
    }
    return config.RecoverConfig(**(values | changes))


def _recover(cfg: config.RecoverConfig) -> pathlib.Path | None:
    cfg = cfg.resolved()
    held = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    return loop.recover(cfg, demo.read_rows(cfg.calibration, split='train'), held)


@pytest.fixture(scope='module')
def finished(
    pruned: Any, calibration_files: Any, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """An unbroken run from a pruned directory."""
    run = tmp_path_factory.mktemp('runs') / 'gains'
    _recover(_settings(calibration_files, run, model=str(pruned[1])))
    return run


def test_the_model_is_the_gain_file_folded_into_the_start(
    finished: pathlib.Path, pruned: Any
) -> None:
    start = base_model.open_base_model(str(pruned[1]))
    own = gain_files.load_for(finished / 'gains.safetensors', start)
    assert own.system_prompt == demo.rows('ferryman', 'train')[0].system_prompt
    folded = own.folded(start).reader
    after = base_model.open_base_model(str(finished / 'hf')).reader
    assert after.names() == folded.names()
    changed = set()
    for name in after.names():
        np.testing.assert_array_equal(after.read(name), folded.read(name))
        if not np.array_equal(after.read(name), start.reader.read(name)):
            changed.add(name.split('.')[-2])
    assert changed == {
        'down_proj', 'o_proj', 'input_layernorm', 'post_attention_layernorm', 'norm'
    }  # fmt: skip
    found = json.loads((finished / 'results' / 'recovery.json').read_text())
    assert (found['method'], found['learning_rate']) == ('gains', 1e-2)
    # 2 layers: 24 channels, 32 of heads, norms of 24; and the last norm.
    assert found['trained_parameters'] == 2 * (24 + 32 + 24 + 24) + 24
    assert found['models']['recovered']['nll'] < found['models']['start']['nll']
    assert not (finished / 'adapter').exists()
    card = (finished / 'hf' / 'README.md').read_text()
    assert 'Gains of ffn, attention, norms, since folded into the weights' in card


def test_paused_and_resumed_run_is_bit_identical(
    finished: pathlib.Path, pruned: Any, calibration_files: Any, tmp_path: pathlib.Path
) -> None:
    cfg = _settings(calibration_files, tmp_path / 'run', model=str(pruned[1]))
    assert _recover(dataclasses.replace(cfg, stop_after=3)) is None
    assert not (tmp_path / 'run' / 'gains.safetensors').exists()
    assert _recover(cfg) == tmp_path / 'run' / 'hf'
    for name in ('gains.safetensors', 'hf/model.safetensors'):
        ours, theirs = (run / name for run in (tmp_path / 'run', finished))
        assert ours.read_bytes() == theirs.read_bytes(), name
    with pytest.raises(errors.InputError, match='--gain_targets'):
        _recover(dataclasses.replace(cfg, gain_targets='norms'))


def test_only_what_is_named_is_trained(tiny_models: Callable[[str], Any]) -> None:
    cfg = tiny_models('llama').config
    assert gains.parse_targets(' norms,ffn, norms') == ('norms', 'ffn')
    found = gains.init_gains(cfg, ['norms'])
    assert {name: x.shape for name, x in found.items()} == {
        'attn_norm': (3, 24),
        'ffn_norm': (3, 24),
        'final_norm': (24,),
    }


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lora_rank': 2}, '--gains and --lora_rank are two ways'),
        ({'gain_targets': 'ffn,keys'}, "no 'keys'; there are ffn, attention, norms"),
        ({'weight_decay': 0.1}, '--weight_decay draws towards 0'),
    ],
)
def test_contradictory_flags(changes: dict[str, Any], message: str) -> None:
    values = {'model': 'm', 'calibration': 'c', 'output_dir': 'o', 'gains': True}
    with pytest.raises(errors.InputError, match=message):
        config.RecoverConfig(**(values | changes))


def test_defaults_are_the_methods_own() -> None:
    cfg = config.RecoverConfig(model='m', calibration='c', output_dir='o')
    own = dataclasses.replace(cfg, gains=True)
    assert (cfg.resolved().micro_batches, own.resolved().micro_batches) == (4, 1)
    assert (cfg.method, own.method) == ('full', 'gains')

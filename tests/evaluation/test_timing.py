"""Timing by a clock that the tests turn, and XLA's count against the closed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.evaluation import timing
from ppjax.masking import apply
from ppjax.models import config as config_lib
from ppjax.models import costs, generation
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib


def _empty(
    cfg: config_lib.ModelConfig, dtype: Any = jnp.float32
) -> decoder_lib.Decoder:
    """Zeros: what is counted does not depend on the weights."""
    shapes = jax.eval_shape(
        lambda: decoder_lib.Decoder(cfg, dtype=dtype, key=jax.random.key(0))
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _loaded(decoder: decoder_lib.Decoder, mask: Any = None) -> apply.LoadedModel:
    return apply.LoadedModel(None, decoder, masks_lib.Masks(mask), None, '')


class _Clock:
    """Seconds that pass only while a model generates.

    Each one's first token takes one time and its others another, and a thousandfold
    in the call that compiles.
    """

    def __init__(self, speeds: dict[int, tuple[float, float]]):
        self.now, self.speeds = 100.0, speeds
        self.calls: list[tuple[int, int, tuple[int, ...]]] = []
        self.options: list[dict[str, Any]] = []

    def stream(self, decoder, masks, rows, *, max_new_tokens, **options):
        (prompt,) = rows
        own = (id(decoder), max_new_tokens, tuple(prompt))
        slow = 1 if any(call[0] == own[0] for call in self.calls) else 1000
        self.calls.append(own)
        self.options.append(options | {'masks': masks})
        for number in range(max_new_tokens):
            self.now += slow * self.speeds[id(decoder)][min(number, 1)]
            yield np.array([3])


@pytest.fixture
def decoders(tiny_models) -> list[decoder_lib.Decoder]:
    return [tiny_models(name).decoder for name in ('llama', 'llama-tied')]


@pytest.fixture
def clock(decoders, monkeypatch) -> _Clock:
    made = _Clock({id(decoders[0]): (2.0, 0.5), id(decoders[1]): (1.0, 0.25)})
    monkeypatch.setattr(generation, 'stream', made.stream)
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: made.now)
    return made


def test_times_of_models_in_turn_and_none_of_compiling(clock, decoders):
    mask = jnp.ones((3, 52), bool)
    seen: list[tuple[int, int]] = []
    found = timing.measure(
        {'dense': _loaded(decoders[0]), 'masked': _loaded(decoders[1], mask)},
        prompt_length=11,
        answer_length=5,
        rounds=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found['dense'] == timing.Times([2.0] * 3, [0.5] * 3)
    assert found['masked'] == timing.Times([1.0] * 3, [0.25] * 3)
    order = [
        'dense' if call[0] == id(decoders[0]) else 'masked' for call in clock.calls
    ]
    # One that always came second would pay for what the first one left behind.
    assert order[2:] == ['dense', 'masked', 'masked', 'dense', 'dense', 'masked']
    for _, tokens, prompt in clock.calls:
        assert tokens == 5
        assert len(prompt) == 11
        assert 0 <= min(prompt) <= max(prompt) < 97
    for call, options in zip(clock.calls, clock.options, strict=True):
        # Were a stop token to end it, the answer would be shorter than it is told.
        assert options['stop_ids'] == ()
        assert (options['masks'].channels is None) == (call[0] == id(decoders[0]))
    assert seen == [(done, 8) for done in range(1, 9)]


def test_the_seed_fixes_the_prompts(clock, decoders):
    def prompts(seed: int) -> list[tuple[int, ...]]:
        clock.calls.clear()
        timing.measure(
            {'dense': _loaded(decoders[0])},
            prompt_length=11,
            answer_length=2,
            rounds=1,
            seed=seed,
            progress=lambda done, total: None,
        )
        return [call[2] for call in clock.calls]

    assert prompts(0) == prompts(0) != prompts(1)


def test_as_json_is_of_medians():
    found = timing.Times([3.0, 1.0, 10.0], [0.5, 0.25, 0.125]).as_json()
    assert found['prefill_seconds'] == {'median': 3.0, 'min': 1.0, 'max': 10.0}
    assert found['decode_seconds_per_token'] == {
        'median': 0.25,
        'min': 0.125,
        'max': 0.5,
    }
    assert found['decode_tokens_per_s'] == 4.0


def test_a_real_model_is_timed(decoders):
    found = timing.measure(
        {'dense': _loaded(decoders[0])},
        prompt_length=20,
        answer_length=40,
        rounds=2,
        progress=lambda done, total: None,
    )
    assert len(found['dense'].prefill) == len(found['dense'].decode) == 2
    assert min(found['dense'].prefill + found['dense'].decode) > 0


@pytest.mark.parametrize('prompt, answer', [(150, 11), (160, 2), (1024, 128)])
def test_what_does_not_fit_the_model_is_refused(clock, decoders, prompt, answer):
    """An answer cut short would be divided by more tokens than it has."""
    with pytest.raises(
        errors.InputError, match=f'160 positions.*={prompt} .*={answer}'
    ):
        timing.measure(
            {'dense': _loaded(decoders[0])},
            prompt_length=prompt,
            answer_length=answer,
            rounds=1,
            progress=lambda done, total: None,
        )
    assert not clock.calls


def test_what_just_fits_is_generated_whole(decoders):
    answers = generation.generate(
        decoders[0], masks_lib.DENSE, [[5] * 150], max_new_tokens=10, stop_ids=()
    )
    assert len(answers[0]) == 10
    timing.measure(
        {'dense': _loaded(decoders[0])},
        prompt_length=150,
        answer_length=10,
        rounds=1,
        progress=lambda done, total: None,
    )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('family', ['llama-scaled', 'qwen3-biased'])
def test_xla_counts_what_the_closed_form_says(tiny_models, family, dtype):
    """Wide enough that products outweigh norms, softmax and the rest."""
    cfg = dataclasses.replace(
        tiny_models(family).config,
        d_model=256,
        head_dim=64,
        d_ff=1024,
        num_layers=3,
    )
    decoder = _empty(cfg, dtype)
    counted = timing.xla_prefill_flops(_loaded(decoder), 64)
    want = costs.prefill_flops(cfg, costs.uniform(cfg), 64)
    assert 1.0 < counted / want < 1.03


def test_xla_counts_fewer_for_fewer_channels(tiny_models):
    cfg = dataclasses.replace(tiny_models('llama').config, d_model=256, d_ff=1024)
    counts = []
    for keep in (1024, 512):
        decoder = _empty(dataclasses.replace(cfg, d_ff=keep))
        counts.append(timing.xla_prefill_flops(_loaded(decoder), 32))
    saved = 3 * 3 * 2 * 32 * 256 * 512  # Layers, matrices.
    np.testing.assert_allclose(counts[0] - counts[1], saved, rtol=0.01)


def test_none_where_xla_does_not_count(tiny_models, monkeypatch):
    compiled = type(jax.jit(lambda x: x).lower(1.0).compile())
    for analysis in (None, {}, {'flops': float('nan')}, {'flops': 0.0}):
        monkeypatch.setattr(compiled, 'cost_analysis', lambda self, a=analysis: a)
        assert (
            timing.xla_prefill_flops(_loaded(tiny_models('llama').decoder), 8) is None
        )

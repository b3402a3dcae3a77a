"""What the tests of recovery share."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppjax.data import chat, packing
from ppjax.exporting import hf_export
from ppjax.learning import schedule
from ppjax.masking import pmask
from ppjax.models import base_model, weights
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.parallel import sharding
from ppjax.recovery import gains as gains_lib
from ppjax.recovery import lora, methods
from ppjax.recovery import step as step_lib
from tests.recovery import unlikely

STEPS = 3


@dataclasses.dataclass(frozen=True)
class Trial:
    """A few optimizer steps on a tiny model.

    Attributes:
        method: what was trained.
        frozen: what was not.
        state: after the last step, on the host.
        metrics: of every step.
    """

    method: methods.Method
    frozen: weights.Weights
    state: step_lib.RecoveryState
    metrics: list[step_lib.Metrics]

    @property
    def model(self) -> Any:
        return self.method.model(self.state.trained, self.frozen)


@pytest.fixture(scope='session')
def run_steps(make_examples: Callable[..., list[chat.Example]]) -> Callable[..., Trial]:
    """Trains a tiny model for `STEPS` steps of 8 examples.

    With `unlikelihood`, two of them are `mark_unlikely`'s.
    """

    # Compiling is all that takes time.
    @functools.cache
    def run(
        tiny: Any,
        *,
        rank: int = 0,
        gains: bool = False,
        mesh: str = 'fsdp:1',
        dtype: str = 'float32',
        micro_batches: int = 2,
        rate: float = 1e-3,
        unlikelihood: float = 0.0,
    ) -> Trial:
        cfg = tiny.config
        devices = jax.devices() if mesh != 'fsdp:1' else jax.devices()[:1]
        where = sharding.make_mesh(mesh, devices)
        method: methods.Method
        if gains:
            method = methods.GainFinetuning(cfg)
            trained = {'gains': gains_lib.init_gains(cfg, list(gains_lib.TARGETS))}
            frozen = sharding.place(weights.weights_of(tiny.decoder), where)
        elif rank:
            method = methods.LoraFinetuning(cfg, scale=2.5)
            trained = {
                'adapters': lora.init_adapters(
                    cfg, list(lora.TARGETS), rank, jax.random.key(3)
                )
            }
            frozen = sharding.place(weights.weights_of(tiny.decoder), where)
        else:
            method = methods.FullFinetuning(cfg, dtype)
            # A copy: the step uses up what it is given.
            trained = jax.tree.map(np.array, weights.weights_of(tiny.decoder))
            frozen = {}
        trained = sharding.place(trained, where)
        rates = schedule.make_schedule(learning_rate=rate, warmup=0.0, num_steps=STEPS)
        optimizer = (
            optax.adam(rates) if gains else optax.adamw(rates, weight_decay=0.01)
        )
        state = step_lib.RecoveryState(
            trained, sharding.place(optimizer.init(trained), where)
        )
        examples = make_examples(24, prefix=6)
        if unlikelihood:
            examples = unlikely.mark_unlikely(examples)
        batches = [np.arange(8) + 8 * (i % 3) for i in range(STEPS)]
        shape = packing.plan_shape(
            examples,
            batches,
            prefix=packing.common_prefix(examples),
            rows=sharding.row_shards(where),
            micro_batches=micro_batches,
        )
        step = step_lib.make_recovery_step(
            optimizer,
            method,
            state,
            where,
            shape=shape,
            remat='dots',
            unlikelihood=unlikelihood,
        )
        metrics = []
        for batch in batches:
            packed = packing.pack(examples, batch, shape)
            state, found = step(state, frozen, packed)
            metrics.append(jax.device_get(found))
        return Trial(method, frozen, jax.device_get(state), metrics)

    return run


@pytest.fixture(scope='session')
def pruned(
    chatty_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, pathlib.Path]:
    """(a mask file, what it leaves of the model as a directory)."""
    folder = tmp_path_factory.mktemp('pruned')
    base = base_model.open_base_model(str(chatty_model))
    mask = np.zeros((2, 40), bool)
    rng = np.random.default_rng(0)
    for row in mask:
        row[rng.permutation(40)[:24]] = True
    persona_mask = pmask.PersonaMask(
        mask=mask,
        base_model=str(chatty_model),
        base_fingerprint=base.fingerprint(),
        persona_sha256='0' * 64,
        system_prompt='You are Bram.',
    )
    pmask.save(folder / 'mask.pmask', persona_mask)
    hf_export.export_pruned(
        base,
        mask,
        folder / 'hf',
        dtype='float32',
        tokenizer=base.tokenizer(),
        model_card='# The card before\n',
        system_prompt='You are Bram.',
    )
    return folder / 'mask.pmask', folder / 'hf'


@dataclasses.dataclass(frozen=True)
class EvenModel:
    """Random weights whose every axis eight devices can split."""

    config: config_lib.ModelConfig
    decoder: decoder_lib.Decoder


@pytest.fixture(scope='session')
def tiny_even(tiny_models: Callable[[str], Any]) -> EvenModel:
    cfg = dataclasses.replace(tiny_models('qwen3').config, vocab_size=104)
    decoder = decoder_lib.Decoder(cfg, dtype=jnp.float32, key=jax.random.key(2))
    return EvenModel(cfg, decoder)

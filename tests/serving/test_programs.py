"""Shapes that are compiled, and a mesh of devices."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from ppjax.models import decoder as decoder_lib
from ppjax.models import weights
from ppjax.parallel import sharding
from ppjax.serving import programs
from tests.serving import engines


def test_few_sizes_serve_all():
    assert programs.widths(1) == [1]
    assert programs.widths(8) == [1, 2, 4, 8]
    assert programs.widths(6) == [1, 2, 4, 6]
    assert programs.spans(160) == [160]
    assert programs.spans(4096) == [512, 1024, 2048, 4096]
    assert programs.spans(5000) == [512, 1024, 2048, 4096, 5000]


def test_a_row_shorter_than_a_block_is_refused(tiny_models):
    decoder = tiny_models('llama').decoder
    with pytest.raises(ValueError, match='32 tokens at least, got 31'):
        programs.Programs(decoder, programs.Shape(2, 31))


def test_nothing_is_compiled_once_it_runs(tiny_models):
    tiny = tiny_models('llama')
    cast = engines.cast(tiny.config, 3)
    seen = []
    with engines.running(tiny.decoder, slots=3) as made:
        # What NumPy's arrays are made into is compiled at their first use.
        engines.ask(made, cast[0], [5] * 40).answer()
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, *_, **__: seen.append(name)
        )
        try:
            asked = [
                engines.ask(made, cast[n % 4], [4 + n] * (1 + 15 * n), max_tokens=9)
                for n in range(9)
            ]
            for one in asked:
                one.answer()
        finally:
            jax.monitoring.clear_event_listeners()
    assert not [name for name in seen if 'compile' in name]


@pytest.mark.parametrize('mesh', ['fsdp:2,tensor:2'])
def test_a_mesh_gives_the_same_tokens(tiny_models, mesh):
    # 104 divides by what meshes split a vocabulary into.
    cfg = dataclasses.replace(tiny_models('llama').config, vocab_size=104)
    decoder = decoder_lib.Decoder(cfg, dtype=np.float32, key=jax.random.key(2))
    cast = engines.cast(cfg, 2)
    prompts = [
        np.random.default_rng(n).integers(3, 97, 20 + 30 * n).tolist() for n in range(3)
    ]

    def answers(decoder, mesh):
        with engines.running(decoder, mesh=mesh, slots=2, max_context=128) as made:
            asked = [
                engines.ask(made, who, prompt, max_tokens=6)
                for who, prompt in zip(cast, prompts, strict=True)
            ]
            first = [one.ids() for one in asked]
            # Behind what is known by now.
            again, ended = engines.ask(
                made, cast[2], [*prompts[2], 7], max_tokens=6
            ).answer()
            assert ended.cached_tokens == 64
            return [*first, [token.id for token in again]]

    count = math.prod(int(part.partition(':')[2]) for part in mesh.split(','))
    over = sharding.make_mesh(mesh, jax.devices()[:count])
    spread = sharding.place(weights.weights_of(decoder), over)
    assert answers(weights.decoder_of(cfg, spread), over) == answers(decoder, None)

"""What is counted in a program's text, against programs of known traffic."""

import jax
import jax.numpy as jnp
import pytest

from ppjax.parallel import sharding
from ppjax.planning import collectives

_ASYNC = """HloModule step

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %ag = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%x), dimensions={0}
  %agd = bf16[4,8]{1,0} all-gather-done(%ag)
  %rs = (f32[2]{0}, u8[4]{0}) reduce-scatter(%a, %b), dimensions={0}
}

%cond (p: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%called (p: f32[3]) -> f32[3] {
  ROOT %perm = f32[3]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

ENTRY %main (x: bf16[1,8]) -> bf16[4,8] {
  %loop = (s32[], bf16[4,8]) while(%init), condition=%cond, body=%body
  %c = f32[3] call(%v), to_apply=%called
  %d = f32[3] fusion(%v), kind=kLoop, calls=%called
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    found = collectives.of_program(_ASYNC)
    assert found == {
        # The result alone, not the operand that an asynchronous one carries along.
        'all-gather': collectives.Traffic(7, 7 * 4 * 8 * 2),
        'reduce-scatter': collectives.Traffic(7, 7 * (2 * 4 + 4)),
        'collective-permute': collectives.Traffic(2, 2 * 3 * 4),
    }


def test_a_program_that_sends_nothing():
    program = jax.jit(lambda x: x * 2).lower(jnp.zeros(3)).compile()
    assert collectives.of_program(program.as_text()) == {}


@pytest.mark.parametrize('layers', [3, 11])
def test_sums_over_a_mesh_in_a_scan(layers):
    mesh = sharding.make_mesh('tensor:8', jax.devices())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'tensor'))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('tensor'))

    def run(x, out, back):
        def layer(x, _):
            return jnp.tanh((x @ out) @ back), None

        return jax.lax.scan(layer, x, None, length=layers)[0]

    shapes = [
        jax.ShapeDtypeStruct((5, 16), jnp.float32, sharding=sharding.replicated(mesh)),
        jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=rows),
    ]
    compiled = jax.jit(run, out_shardings=sharding.replicated(mesh))
    program = compiled.lower(*shapes).compile()
    found = collectives.of_program(program.as_text())
    assert found == {'all-reduce': collectives.Traffic(layers, layers * 5 * 16 * 4)}

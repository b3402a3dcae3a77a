"""Packing loses nothing, and the loss and gradient are the padded batch's."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import torch

from ppjax.data import chat, packing
from ppjax.learning import measure as measure_lib
from ppjax.masking import topk
from ppjax.models import masks as masks_lib
from ppjax.training import step as step_lib
from ppjax.training import turns

# (tokens after the prefix before the answer, answer tokens) of an example.
_sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def _examples(prefix: int, sizes: list[tuple[int, int]]) -> list[chat.Example]:
    """Tokens are unlike each other, so that a misplaced one is seen."""
    examples = []
    fresh = 1000
    for number, (own, answer) in enumerate(sizes):
        tokens = np.arange(fresh, fresh + prefix + own + answer, dtype=np.int32)
        fresh += len(tokens)
        tokens[:prefix] = np.arange(1, prefix + 1)
        examples.append(chat.Example(tokens, prefix + own, str(number)))
    return examples


def _check_row(shared, tokens, positions, segments, seen, examples, by_token):
    """Reads one packed row back, example by example."""
    np.testing.assert_array_equal(tokens[:shared], np.arange(1, shared + 1))
    np.testing.assert_array_equal(positions[:shared], np.arange(shared))
    body, places = tokens[shared:], positions[shared:]
    for segment in range(1, segments.max() + 1):
        where = np.nonzero(segments == segment)[0]
        np.testing.assert_array_equal(where, np.arange(where[0], where[-1] + 1))
        item = by_token[int(body[where[0]])]
        seen.append(item)
        np.testing.assert_array_equal(body[where], examples[item].tokens[shared:])
        np.testing.assert_array_equal(
            places[where], np.arange(shared, len(examples[item].tokens))
        )
    assert not body[segments == 0].any()


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    prefix=st.sampled_from([0, 1, 2, 33]),
    sizes=st.lists(_sizes, min_size=1, max_size=14),
    rows=st.integers(1, 3),
    micro_batches=st.integers(1, 3),
    data=st.data(),
)
def test_every_token_has_one_right_place(prefix, sizes, rows, micro_batches, data):
    examples = _examples(prefix, sizes)
    order = data.draw(st.permutations(range(len(examples))))
    cut = data.draw(st.integers(1, len(examples)))
    batches = [np.asarray(part) for part in (order[:cut], order[cut:]) if part]
    shape = packing.plan_shape(
        examples, batches, prefix=prefix, rows=rows, micro_batches=micro_batches
    )
    assert shape.chunk % 32 == 0
    assert shape.tokens_per_row == prefix + shape.chunk * shape.chunks
    by_token = {int(e.tokens[prefix]): n for n, e in enumerate(examples)}
    for batch in batches:
        packed = packing.pack(examples, batch, shape)
        length, body = shape.tokens_per_row, shape.chunk * shape.chunks
        outer = (micro_batches, rows)
        assert packed.tokens.shape == packed.positions.shape == (*outer, length)
        assert packed.segments.shape == (*outer, body)
        for part in packed[3:]:
            assert part.shape == (*outer, shape.answers)
        for part in packed:
            assert part.dtype == (np.float32 if part is packed.weights else np.int32)
        flat = packing.PackedBatch(
            *(part.reshape(rows * micro_batches, -1) for part in packed)
        )

        seen: list[int] = []
        for tokens, positions, segments in zip(*flat[:3], strict=True):
            _check_row(prefix, tokens, positions, segments, seen, examples, by_token)
            # An example lies within one chunk.
            for chunk in segments.reshape(shape.chunks, shape.chunk):
                for segment in set(chunk.tolist()) - {0}:
                    assert (chunk == segment).sum() == (segments == segment).sum()
        assert sorted(seen) == sorted(batch.tolist())

        # Answers: each once, predicted where the token before it stands.
        answers: dict[int, list[int]] = {item: [] for item in range(len(batch))}
        for row in range(len(flat.tokens)):
            for place in np.nonzero(flat.weights[row])[0]:
                source, target = flat.sources[row, place], flat.targets[row, place]
                item = int(flat.owners[row, place])
                example = examples[batch[item]]
                assert source >= prefix
                position = flat.positions[row, source]
                assert example.tokens[position] == flat.tokens[row, source]
                assert example.tokens[position + 1] == target
                answers[item].append(int(target))
        for item, targets in answers.items():
            example = examples[batch[item]]
            assert targets == example.tokens[example.answer_start :].tolist()
        assert set(np.unique(flat.weights)) <= {0.0, 1.0}


def test_a_shape_shares_answers_among_rows():
    examples = _examples(3, [(2, 30)] * 8)
    shape = packing.plan_shape(
        examples, [np.arange(8)], prefix=3, rows=2, micro_batches=2
    )
    assert shape.answers == 60
    assert shape.chunk * shape.chunks == 64


def test_packing_saves_tokens():
    examples = _examples(100, [(20, 30)] * 16)
    prefix = packing.common_prefix(examples)
    shape = packing.plan_shape(examples, [np.arange(16)], prefix=prefix)
    padded = packing.plan_shape(examples, [np.arange(16)], prefix=0)
    assert shape.tokens_per_row < 0.5 * padded.tokens_per_row


@hypothesis.given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    spare=st.integers(0, 60),
)
def test_chunks_hold_every_item_once_and_are_not_overfull(lengths, spare):
    capacity = max(lengths) + spare
    chunks = packing.assign_chunks(lengths, capacity)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in chunk) for chunk in chunks]
    assert max(loads) <= capacity
    # No two chunks fit into one: never more than twice the least number.
    smallest = sorted(loads)[:2]
    assert len(loads) == 1 or sum(smallest) > capacity


def test_batches_that_do_not_fit_are_refused():
    examples = _examples(2, [(10, 10)] * 4 + [(60, 60)])
    shape = packing.plan_shape(examples, [np.arange(2)], prefix=2)
    with pytest.raises(ValueError, match=r'120 tokens exceed the chunk \d+'):
        packing.pack(examples, [4], shape)
    with pytest.raises(ValueError, match='chunks are needed'):
        packing.pack(examples, [0, 1, 2, 3] * 4, shape)


def test_rows_of_another_shape_are_refused():
    examples = _examples(2, [(1, 3)] * 4)
    shape = packing.plan_shape(examples, [np.arange(4)], prefix=2)
    rows = packing.pack(examples, range(4), shape).first()
    shape.check(rows)
    for change in ({'prefix': 1}, {'chunk': 64}, {'answers': 13}, {'rows': 2}):
        with pytest.raises(AssertionError, match='shape'):
            dataclasses.replace(shape, **change).check(rows)


# --- The common prefix --------------------------------------------------------


def _example(tokens: list[int], answer_start: int) -> chat.Example:
    return chat.Example(np.asarray(tokens, np.int32), answer_start, '')


@pytest.mark.parametrize(
    ('examples', 'want'),
    [
        ([([5, 6, 7, 8, 9], 4), ([5, 6, 1, 8, 9], 4)], 2),
        ([([5, 6, 7, 8, 9], 4), ([4, 6, 7, 8, 9], 4)], 0),
        # Token 7 predicts the first answer token 8: it stays outside.
        ([([5, 6, 7, 8], 3), ([5, 6, 7, 8], 3)], 2),
        ([([5, 6, 7, 8, 9, 1], 5), ([5, 6, 7, 8], 3)], 2),
        ([([5, 6, 7, 8], 3)], 2),
        ([([5, 6], 1), ([5, 6], 1)], 0),
        ([([5, 6, 7, 8, 9, 1], 5), ([5, 6, 7, 8, 9, 2], 5)], 4),
        ([([5, 6, 7, 8], 3), ([5, 6, 7, 8], 3), ([5, 1, 7, 8], 3)], 1),
    ],
)
def test_common_prefix(examples, want):
    assert packing.common_prefix([_example(*pair) for pair in examples]) == want


@hypothesis.given(
    prefix=st.integers(0, 9), sizes=st.lists(_sizes, min_size=1, max_size=5)
)
def test_common_prefix_leaves_every_prediction_outside(prefix, sizes):
    examples = _examples(prefix, sizes)
    found = packing.common_prefix(examples)
    assert found >= min(prefix, min(e.answer_start for e in examples) - 1)
    for example in examples:
        start = example.tokens[:found].tolist()
        assert start == examples[0].tokens[:found].tolist()
        assert found < example.answer_start
    if len(examples) > 1:
        assert found <= prefix


# --- Exactness ----------------------------------------------------------------

_KEEP = 35
_COUNT = 16
_PREFIX = 9


def _learn(tiny, scores, shape, batch) -> tuple[float, np.ndarray]:
    """(loss, dL/dz) of the real train step."""
    learning = step_lib.Learning(
        keep=_KEEP,
        estimator='ste',
        objective='ce',
        anneal=0.0,
        weight_decay=0.0,
        remat='none',
        seed=0,
    )
    step = step_lib.make_train_step(learning, shape)
    state = step_lib.init_state(scores[None], learning)
    turn = turns.make_turn([0], [0], [1], [lambda step: 0.1], 1)
    slots = jax.tree.map(lambda x: x[None], batch)
    state, metrics = step(state, tiny.decoder, slots, turn)
    # After one step Adam's first moment is a tenth of the gradient.
    return float(metrics.loss[0]), np.asarray(state.optimizer[0].mu[0]) * 10


def _padded_batch(examples) -> tuple[packing.PackedShape, packing.PackedBatch]:
    """One example a row, padded on the right, as any other trainer has it."""
    width = max(len(example.tokens) for example in examples)
    answers = max(example.num_answer_tokens for example in examples)
    shape = packing.PackedShape(0, width, 1, answers, len(examples), 1)
    batch = packing.PackedBatch(
        *(
            np.zeros((1, len(examples), n), np.int32)
            for n in [width] * 3 + [answers] * 2
        ),
        np.zeros((1, len(examples), answers), np.float32),
        np.zeros((1, len(examples), answers), np.int32),
    )
    batch.positions[:] = np.arange(width)
    for row, example in enumerate(examples):
        length, count = len(example.tokens), example.num_answer_tokens
        batch.tokens[0, row, :length] = example.tokens
        batch.segments[0, row, :length] = 1
        batch.sources[0, row, :count] = np.arange(example.answer_start, length) - 1
        batch.targets[0, row, :count] = example.tokens[example.answer_start :]
        batch.weights[0, row, :count] = 1
        batch.owners[0, row, :count] = row
    return shape, batch


@pytest.fixture(scope='module')
def exactness(tiny_models, make_examples, hf_answer_nll):
    """name -> (model, examples, scores, loss and gradient of the padded batch).

    The padded batch's figures are checked against PyTorch's here, with the mask
    multiplied in (for the gradient) and with the channels deleted (for the loss).
    """
    made = {}

    def make(name):
        if name in made:
            return made[name]
        tiny = tiny_models(name)
        examples = make_examples(_COUNT, prefix=_PREFIX, seed=2)
        scores = jax.random.normal(jax.random.key(6), (3, 52))
        shape, batch = _padded_batch(examples)
        loss, gradient = _learn(tiny, scores, shape, batch)

        mask = np.asarray(topk.topk_mask(scores, _KEEP))
        masks = [torch.tensor(row, requires_grad=True) for row in mask]
        handles = [
            block.mlp.down_proj.register_forward_pre_hook(
                lambda module, args, row=row: args[0] * row
            )
            for block, row in zip(tiny.hf.model.layers, masks, strict=True)
        ]
        want = hf_answer_nll(tiny.hf, examples).mean()
        want.backward()
        for handle in handles:
            handle.remove()
        tiny.hf.zero_grad()
        _assert_close(loss, want.item())
        _assert_close(gradient, torch.stack([row.grad for row in masks]).numpy())
        with torch.no_grad():
            pruned = hf_answer_nll(tiny.pruned_hf(mask > 0), examples).mean()
        _assert_close(loss, pruned.item())
        made[name] = (tiny, examples, scores, loss, gradient)
        return made[name]

    return make


def _assert_close(got, want) -> None:
    """Equal to 1e-5 of the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ('name', 'rows', 'micro_batches'),
    [
        ('llama', 1, 1),
        ('llama', 2, 2),
        ('qwen3', 1, 1),
        ('qwen3', 1, 2),
        ('qwen3', 2, 1),
        ('qwen3', 2, 2),
    ],
)
def test_packed_loss_and_gradient_are_the_padded_batchs(
    exactness, name, rows, micro_batches
):
    tiny, examples, scores, want_loss, want_gradient = exactness(name)
    prefix = packing.common_prefix(examples)
    assert prefix == _PREFIX
    shape = packing.plan_shape(
        examples,
        [np.arange(_COUNT)],
        prefix=prefix,
        rows=rows,
        micro_batches=micro_batches,
    )
    batch = packing.pack(examples, range(_COUNT), shape)
    loss, gradient = _learn(tiny, scores, shape, batch)
    _assert_close(loss, want_loss)
    _assert_close(gradient, want_gradient)


def test_packing_without_sharing_is_exact_too(exactness):
    tiny, examples, scores, want_loss, want_gradient = exactness('llama')
    shape = packing.plan_shape(examples, [np.arange(_COUNT)], prefix=0)
    batch = packing.pack(examples, range(_COUNT), shape)
    loss, gradient = _learn(tiny, scores, shape, batch)
    _assert_close(loss, want_loss)
    _assert_close(gradient, want_gradient)


def test_owners_tell_examples_apart(exactness, hf_answer_nll):
    tiny, examples, _, _, _ = exactness('llama')
    prefix = packing.common_prefix(examples)
    shape = packing.plan_shape(examples, [np.arange(_COUNT)], prefix=prefix, rows=2)
    batch = packing.pack(examples, range(_COUNT), shape)
    nll = np.asarray(
        measure_lib.make_measure(shape)(tiny.decoder, masks_lib.DENSE, batch)
    )
    got = np.bincount(
        batch.owners.ravel(), (nll * batch.weights).ravel(), minlength=_COUNT
    )
    with torch.no_grad():
        want = [hf_answer_nll(tiny.hf, [e]).sum().item() for e in examples]
    np.testing.assert_allclose(got, want, rtol=1e-4)

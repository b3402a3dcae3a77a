"""Where scores start: gradients of the dense model, and masks learned before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors
from ppjax.data import chat, packing
from ppjax.learning import data
from ppjax.learning import loss as loss_lib
from ppjax.masking import pmask, score_init, topk
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib
from ppjax.training import config, loop, starts


@pytest.fixture(scope='module')
def setting(chatty_model):
    base = base_model.open_base_model(str(chatty_model))
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(base.tokenizer(), date='2026-01-01')
    examples, _ = chat.render_rows(renderer, demo.rows('ferryman', 'train')[:12], 1024)
    return model, examples


def test_taylor_scores_are_the_gradients_of_padded_batches(setting):
    """By another way: no packing, no sharing, one batch at a time."""
    model, examples = setting
    [found] = starts.Starts.of_personas([examples], seed=5)
    got = np.asarray(found.taylor(model, 'dots'))
    squares = np.zeros((2, 40))
    order = np.random.default_rng(5).permutation(12)
    drawn = [examples[i] for i in order]
    lengths = np.argsort([len(example.tokens) for example in drawn], kind='stable')
    for batch in (lengths[::2], lengths[1::2]):
        shape = packing.plan_shape(drawn, [batch], prefix=0, rows=4)
        rows = packing.pack(drawn, batch, shape).first()

        def loss(mask, rows=rows, shape=shape):
            nll = loss_lib.answer_losses(
                model, masks_lib.Masks(mask), rows, shape, remat='none', objective='ce'
            )
            return jnp.sum(nll * rows.weights) / jnp.sum(rows.weights)

        squares += np.asarray(jax.grad(loss)(jnp.ones((2, 40)))) ** 2
    log = np.log(np.sqrt(squares))
    want = (log - log.mean(axis=1, keepdims=True)) / log.std(axis=1, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-3)
    activation = np.asarray(found.activation(model))
    assert np.abs(activation - got).max() > 0.5


def test_a_start_from_one_mask_is_that_mask():
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 40), bool)
    for layer in mask:
        layer[rng.permutation(40)[:25]] = True
    activation = rng.normal(size=(3, 40)).astype(np.float32)
    z = score_init.mask_scores(mask[None], activation)
    np.testing.assert_array_equal(
        np.asarray(topk.topk_mask(jnp.asarray(z), 25)) > 0, mask
    )
    # Within the kept ones, and within the others, activation decides.
    for layer in range(3):
        for group in (mask[layer], ~mask[layer]):
            np.testing.assert_array_equal(
                np.argsort(z[layer][group]), np.argsort(activation[layer][group])
            )
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=1), 1, atol=0.05)


def test_a_start_from_several_masks_counts_them():
    masks = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 1, 0, 0]]], bool)
    z = score_init.mask_scores(masks, np.array([[0.0, 0.0, 9.0, 5.0]]))
    np.testing.assert_array_equal(np.argsort(-z[0]), [0, 1, 2, 3])


def _settings(model, output, **changes):
    values = {
        'base_model': str(model),
        'calibration': 'demo:ferryman',
        'output_dir': str(output),
        'align': 1,
        'batch_size': 4,
        'steps': 2,
    }
    return config.TrainConfig(**(values | changes))


def _learn(cfg):
    return loop.learn_mask(cfg, demo.read_rows(cfg.calibration, split='train')[:8], [])


def test_a_run_starts_from_another_ones_mask(chatty_model, tmp_path):
    first = _learn(_settings(chatty_model, tmp_path / 'first', score_init='random'))
    second = _learn(
        _settings(chatty_model, tmp_path / 'second', score_init=str(first), steps=1)
    )
    start = pmask.load(second.parent / 'results' / 'start_mask.pmask')
    np.testing.assert_array_equal(start.mask, pmask.load(first).mask)
    # On the same settings it goes on; with the file replaced it does not.
    other = _learn(_settings(chatty_model, tmp_path / 'other', score_init='taylor'))
    first.write_bytes(other.read_bytes())
    with pytest.raises(errors.InputError, match='the content of start masks'):
        _learn(
            _settings(chatty_model, tmp_path / 'second', score_init=str(first), steps=1)
        )


@pytest.mark.parametrize('score_init', ['activation', 'taylor'])
def test_a_start_does_not_depend_on_how_many_take_a_step(
    chatty_model, tmp_path, score_init
):
    masks = []
    for size in (2, 5):
        cfg = _settings(
            chatty_model,
            tmp_path / str(size),
            score_init=score_init,
            batch_size=size,
            steps=1,
        )
        results = _learn(cfg).parent / 'results'
        masks.append(pmask.load(results / 'start_mask.pmask').mask)
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize(
    ('start', 'message'),
    [
        ('activations', '--score_init must be activation, taylor, random, or .pmask'),
        ('a.pmask,b.json', '--score_init must be'),
    ],
)
def test_a_start_that_is_none_is_refused(chatty_model, tmp_path, start, message):
    with pytest.raises(errors.InputError, match=message):
        _settings(chatty_model, tmp_path / 'run', score_init=start)


def test_a_mask_of_another_base_is_refused(chatty_model, tmp_path):
    path = tmp_path / 'other.pmask'
    pmask.save(path, pmask.PersonaMask(np.ones((2, 40), bool), 'other', 'ff', '00'))
    cfg = _settings(chatty_model, tmp_path / 'run', score_init=str(path))
    with pytest.raises(errors.InputError, match='learned on other'):
        _learn(cfg)
    assert not (tmp_path / 'run').exists()


def test_calibration_lists_and_subsets(tmp_path):
    both = demo.read_rows('demo:ferryman, demo:ferryman', split='train')
    one = demo.read_rows('demo:ferryman', split='train')
    assert len(both) == 2 * len(one)
    many = ','.join(['demo:ferryman'] * 40)  # Longer than a file's name may be.
    assert len(demo.read_rows(many, split='test')) == 40 * len(
        demo.read_rows('demo:ferryman', split='test')
    )
    small, large = (data.subset(one, size, 3) for size in (10, 30))
    assert len(small) == 10
    assert {row.query_id for row in small} < {row.query_id for row in large}
    assert [row.query_id for row in large] == [
        row.query_id for row in one if row in large
    ]
    with pytest.raises(errors.InputError, match='--calibration_rows=9999'):
        data.subset(one, 9999, 0)
    odd = tmp_path / 'a,b.jsonl'
    odd.write_text(
        '{"messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": "b"}]}\n'
    )
    assert len(demo.read_rows(str(odd), split='train')) == 1

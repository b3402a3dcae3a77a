"""A comparison as a whole, of planted sub-networks."""

import itertools

import numpy as np
import pytest

from ppjax.analysis import config, correlation, labels, overlap, results, study
from ppjax.base import errors

_NAMES = ['persona0', 'persona1', 'persona2']


def _config(**changes):
    return config.MasksConfig(**({'masks': 'x', 'output_dir': 'out'} | changes))


@pytest.fixture
def masks(compare, planted):
    return compare(*((name, f'seed {s}', kept) for (name, s), kept in planted.items()))


@pytest.fixture
def found(masks):
    return study.of_masks(_config(), masks, labels.SEED)


def test_planted_sub_networks(found):
    assert sorted(found.personas) == _NAMES
    # Those that share half are beside each other.
    assert 'persona2' in (found.personas[0], found.personas[2])
    assert found.repetitions == ['seed 0', 'seed 1', 'seed 2']
    assert found.closeness.difference.interval[0] > 0.1
    assert [(x.first, x.second) for x in found.seed_pairs] == [
        ('seed 0', 'seed 1'),
        ('seed 0', 'seed 2'),
        ('seed 1', 'seed 2'),
    ]
    # The pair that shares half is the most alike in all seeds.
    assert all(pair.found.r > 0.9 for pair in found.seed_pairs)
    assert found.notes == []


def test_seeds_are_compared_persona_by_persona(found, planted):
    """Figure 4a's r, from NumPy alone."""

    def similarities(seed):
        pairs = itertools.combinations(found.personas, 2)
        return [
            (a & b).sum() / (a | b).sum()
            for a, b in ((planted[x, seed], planted[y, seed]) for x, y in pairs)
        ]

    for pair, (a, b) in zip(found.seed_pairs, ((0, 1), (0, 2), (1, 2)), strict=True):
        wanted = np.corrcoef(similarities(a), similarities(b))[0, 1]
        assert pair.found.r == pytest.approx(wanted, abs=1e-9)


def test_the_order_of_masks_changes_nothing(found, masks):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(masks))
    moved = study.of_masks(_config(), [masks[x] for x in order], labels.SEED)
    np.testing.assert_allclose(moved.similarity, found.similarity[np.ix_(order, order)])
    for name in ('within', 'between', 'between_same', 'between_other', 'difference'):
        own, other = (getattr(x.closeness, name) for x in (found, moved))
        assert other.value == pytest.approx(own.value, abs=1e-12)
        assert other.interval == pytest.approx(own.interval, abs=0.02)
    assert [x.found.r for x in moved.seed_pairs] == pytest.approx(
        [x.found.r for x in found.seed_pairs], abs=1e-9
    )
    np.testing.assert_allclose(moved.layers.within, found.layers.within)


def test_layers(compare):
    # They share all in layer 1, and nothing in layer 2.
    masks = compare(
        ('jack', 'seed 0', [[1, 1, 0, 0], [1, 1, 0, 0]]),
        ('walt', 'seed 0', [[1, 1, 0, 0], [0, 0, 1, 1]]),
    )
    found = study.of_masks(_config(), masks, labels.NUMBER)
    np.testing.assert_allclose(found.layers.between, [1, 0])
    np.testing.assert_allclose(found.layers.chance, [1 / 3, 1 / 3])
    assert found.layers.within is None
    again = compare(('jack', 'seed 1', [[0, 0, 1, 1], [1, 1, 0, 0]]))
    found = study.of_masks(_config(), [*masks, *again], labels.SEED)
    np.testing.assert_allclose(found.layers.within, [0, 1])
    np.testing.assert_allclose(found.layers.between, [0.5, 0])


def test_only_repetitions_that_all_personas_have_count_between_them(compare):
    near, far = [[1, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 1]]
    masks = compare(
        ('jack', 'learned', near),
        ('walt', 'learned', [[1, 1, 0, 1, 0, 0]]),
        ('ida', 'learned', [[1, 0, 0, 1, 1, 0]]),
        ('jack', 'one_shot', far),
    )
    found = study.of_masks(_config(), masks, labels.VARIANT)
    jack, walt, ida = (found.personas.index(x) for x in ('jack', 'walt', 'ida'))
    assert found.of_personas[jack, walt] == pytest.approx(2 / 4)
    assert found.of_personas[jack, ida] == pytest.approx(1 / 5)
    assert found.of_personas[jack, jack] == 0
    assert np.isnan(found.of_personas[walt, walt])
    assert np.isnan(found.by_repetition['one_shot'][jack, walt])
    # Without one in common, all pairs do.
    some = study.of_masks(_config(), masks[1:], labels.VARIANT)
    jack, walt = (some.personas.index(x) for x in ('jack', 'walt'))
    assert some.of_personas[jack, walt] == pytest.approx(1 / 5)


def test_what_is_left_out_is_said(compare):
    near, wide = [[1, 1, 0, 0]], [[1, 1, 1, 0]]
    once = compare(('jack', '1', near), ('walt', '1', wide))
    found = study.of_masks(_config(), once, labels.NUMBER)
    assert not found.repeated
    assert found.seed_pairs == []
    said = ' '.join(found.notes)
    assert 'No persona has two masks' in said
    assert 'different numbers of channels, 2 to 3' in said
    alone = compare(('jack', '1', near), ('jack', '2', near))
    said = ' '.join(study.of_masks(_config(), alone, labels.NUMBER).notes)
    assert 'numbered in the order given' in said
    assert 'All masks are of one persona' in said
    assert 'The same mask: jack, 1 and jack, 2.' in said


def test_similarities_that_are_all_equal_have_no_r(compare):
    masks = compare(
        *(
            (name, seed, np.eye(3, dtype=bool)[[place]])
            for place, name in enumerate(_NAMES)
            for seed in ('seed 0', 'seed 1')
        )
    )
    found = study.of_masks(_config(), masks, labels.SEED)
    (pair,) = found.seed_pairs
    assert pair.found.r is None
    assert pair.found.undefined == 'all similarities are equal'
    assert found.closeness.difference.value == 1


def test_texts_beside_masks(masks, serve_json, found):
    """Figure 4b's r: texts 0 and 1 point the same way, as their masks do."""
    vectors = {'0': [1.0, 0.1], '1': [2.0, 0.5], '2': [0.0, 3.0]}

    def answer(body):
        (number,) = (x for x in vectors if f'persona{x}' in body['input'])
        return 200, {'data': [{'embedding': vectors[number]}]}

    cfg = _config(
        embeddings='openai', embedding_model='e', embedding_url=serve_json(answer)
    )
    own = study.of_masks(cfg, masks, labels.SEED).alignment
    assert own.personas == found.personas
    given = np.array([vectors[name[-1]] for name in own.personas])
    norms = np.linalg.norm(given, axis=1)
    np.testing.assert_allclose(own.texts, given @ given.T / np.outer(norms, norms))
    mean = np.nanmean(list(found.by_repetition.values()), axis=0)
    assert own.found == correlation.correlate(mean, own.texts)
    assert own.found.r > 0.9


def test_personas_without_a_text_are_left_out(compare, make_mask, serve_json, masks):
    def answer(body):
        return 200, {'data': [{'embedding': [1.0, float(len(body['input']))]}]}

    cfg = _config(
        embeddings='openai', embedding_model='e', embedding_url=serve_json(answer)
    )
    for mask in masks[:3]:
        object.__setattr__(mask.mask, 'system_prompt', '')
    found = study.of_masks(cfg, masks, labels.SEED)
    assert sorted(found.alignment.personas) == _NAMES[1:]
    assert found.alignment.found.undefined == ('3 personas are needed, and there are 2')
    assert any('mask files of persona0:' in note for note in found.notes)
    for mask in masks[3:6]:
        object.__setattr__(mask.mask, 'system_prompt', '')
    found = study.of_masks(cfg, masks, labels.SEED)
    assert found.alignment is None
    assert any('Fewer than two personas' in note for note in found.notes)


def test_an_embedding_of_zeros_is_refused(masks, serve_json):
    url = serve_json(lambda body: (200, {'data': [{'embedding': [0.0, 0.0]}]}))
    cfg = _config(embeddings='openai', embedding_model='e', embedding_url=url)
    with pytest.raises(errors.InputError, match='zeros'):
        study.of_masks(cfg, masks, labels.SEED)


def test_json_has_the_figures_and_no_nan(compare):
    masks = compare(
        ('jack', 'seed 0', [[1, 1, 0, 0]]),
        ('jack', 'seed 1', [[1, 0, 1, 0]]),
        ('walt', 'seed 0', [[0, 1, 1, 0]]),
    )
    found = study.of_masks(_config(), masks, labels.SEED)
    told = results.as_json(found)
    np.testing.assert_allclose(
        told['jaccard'], overlap.Overlaps.of([x.mask.chosen for x in masks]).jaccard()
    )
    assert told['closeness']['within'] == {
        'value': pytest.approx(1 / 3),
        'interval': None,
        'pairs': 1,
    }
    second = told['by_repetition']['seed 1']
    jack, walt = (found.personas.index(x) for x in ('jack', 'walt'))
    assert second[jack][jack] == 1
    assert second[jack][walt] is second[walt][walt] is None
    assert told['between_seeds'][0]['undefined'] == (
        '3 personas are needed, and there are 1'
    )
    assert told['masks'][2]['kept'] == 2
    assert told['repetitions_are'] == 'seed'

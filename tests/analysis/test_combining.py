"""Masks made of others, by hand; what files say."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ppjax.analysis import combining, sources
from ppjax.base import errors
from ppjax.masking import pmask, ranking

_A = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
_B = np.array([[0, 1, 1, 0], [1, 1, 0, 0]], bool)


@pytest.fixture
def source(make_mask):
    def of(kept, *given, **changes):
        made = make_mask(kept, *given, **changes)
        return sources.SourceMask(pathlib.Path('/x.pmask'), made, None, '0')

    return of


@pytest.mark.parametrize(
    ('operation', 'wanted'),
    [
        ('and', [[0, 1, 0, 0], [1, 1, 0, 0]]),
        ('or', [[1, 1, 1, 0], [1, 1, 1, 0]]),
        ('xor', [[1, 0, 1, 0], [0, 0, 1, 0]]),
        ('diff', [[1, 0, 0, 0], [0, 0, 1, 0]]),
    ],
)
def test_by_hand(source, operation, wanted, tmp_path):
    made = combining.combine(operation, [source(_A), source(_B)])
    np.testing.assert_array_equal(made.chosen, np.array(wanted, bool))
    pmask.save(tmp_path / 'made.pmask', made)
    again = pmask.load(tmp_path / 'made.pmask')
    np.testing.assert_array_equal(again.chosen, made.chosen)
    assert again.base_fingerprint == 'f' * 64
    # Layers of different widths are told by `kept`, of one width by the mask alone.
    assert (again.kept is None) == (len(set(map(sum, wanted))) == 1)


def test_more_than_two(source):
    third = np.array([[1, 1, 0, 0], [0, 1, 0, 1]], bool)
    masks = [source(x) for x in (_A, _B, third)]
    for operation, wanted in (
        ('and', _A & _B & third),
        ('or', _A | _B | third),
        ('xor', _A ^ _B ^ third),
    ):
        made = combining.combine(operation, masks)
        np.testing.assert_array_equal(made.chosen, wanted)
    with pytest.raises(errors.InputError, match='exactly two masks; --masks names 3'):
        combining.combine('diff', masks)
    with pytest.raises(errors.InputError, match='two masks at least; --masks names 1'):
        combining.combine('and', masks[:1])


def test_it_is_of_a_persona_only_if_all_are(source):
    jack, again = source(_A, 'Jack.'), source(_B, 'Jack.')
    walt = source(_B, 'Walt.')
    made = combining.combine('or', [jack, again])
    assert made.persona_sha256 == jack.mask.persona_sha256
    assert made.system_prompt == jack.mask.system_prompt
    both = combining.combine('or', [jack, walt])
    assert (both.persona_sha256, both.system_prompt) == ('', '')
    assert 'of no persona' in combining.combined_text('or', [jack, walt], both)
    assert 'of no persona' not in combining.combined_text('or', [jack, again], made)


def test_a_layer_that_keeps_nothing_is_named(source):
    with pytest.raises(errors.InputError, match=r'1 of 2 layers.*from 1: 2\. Every'):
        combining.combine('diff', [source(_A), source(_A ^ [[1], [0]])])
    first = source([[1, 0]], granularity='blocks')
    second = source([[0, 1]], granularity='blocks')
    with pytest.raises(errors.InputError, match='leaves no block'):
        combining.combine('and', [first, second])
    made = combining.combine('or', [first, second])
    assert (made.granularity, made.keep) == ('blocks', 2)


def test_masks_of_two_base_models_are_refused(source):
    with pytest.raises(errors.InputError, match='different base models'):
        combining.combine('or', [source(_A), source(_B, base_fingerprint='e' * 64)])


def test_gains_are_left_out_and_that_is_said(source):
    gains = np.full((2, 2), 1.5, np.float16)
    own = source(_B, gains=gains)
    made = combining.combine('and', [own, source(_A)])
    assert made.gains is not None  # Zeros, of a layer that keeps less.
    assert not made.has_gains
    assert 'Gains and ranks' in combining.combined_text('and', [own, source(_A)], made)


def _facts(mask):
    return dict(combining.facts(mask))


def test_facts(source):
    plain = _facts(source(_B, 'Jack.'))
    assert plain['Keeps'] == '2 of 4 channels in each of 2 layers'
    assert plain['Sparsity'] == '0.5'
    assert plain['Fingerprint'] == 'f' * 64
    assert 'Jack.' in plain['Persona']
    assert (plain['Gains'], plain['Ranks'], plain['Seed']) == ('no', 'no', 'not known')
    wide = _facts(source(_A))
    assert wide['Keeps'] == '5 of 8 channels in 2 layers'
    assert wide['Widths'] == '2 to 3: 2, 3'
    assert wide['Sparsity'] == '0.375'
    blocks = _facts(source([[1, 0, 1]], granularity='blocks'))
    assert blocks['Keeps'] == '2 of 3 blocks'


def test_facts_of_gains_ranks_and_prompts(source):
    ranks = np.argsort(~_B, axis=1, kind='stable').argsort(axis=1).astype(np.uint16)
    every = np.full((2, 4), 0.5, np.float16)
    every[0, 1] = 2
    made = ranking.Ranking(ranks, ranking.Keeps(1, 3, 1), every)
    own = source(_B, ranking=made, gains=made.gains_of(_B))
    found = _facts(own)
    assert found['Gains'] == '0.500 to 2.000, 0.875 on average'
    assert found['Ranks'] == '1 to 3 of 4, sparsity 0.25 to 0.75'
    other = dataclasses.replace(own.mask, system_prompt='Of someone else.')
    changed = _facts(dataclasses.replace(own, mask=other))
    assert 'not of the prompt' in changed['Persona sha256']
    assert _facts(source(_A, ''))['Persona sha256'] == 'of no persona, or of several'

"""Names of personas and repetitions."""

import dataclasses
import pathlib

import pytest

from ppjax.analysis import labels, sources
from ppjax.base import errors


@pytest.fixture
def masks(make_mask):
    """(path, persona, seed) of each -> masks as they are read."""

    def of(*given):
        return [
            sources.SourceMask(
                pathlib.Path('/runs', path), make_mask([[1, 0]], persona), seed, '0'
            )
            for path, persona, seed in given
        ]

    return of


def _names(found):
    return [(mask.persona, mask.repetition) for mask in found]


@pytest.mark.parametrize(
    'paths',
    [
        [
            f'sweep/cells/persona-{own}/mask.pmask'
            for own in ('jack--seed-0', 'walt--seed-0', 'jack--seed-1')
        ],
        # Of a comparison, and a run beside it.
        [
            'models/persona-jack--seed-0--sparsity-0.25/mask.pmask',
            'models/persona-walt--seed-0--sparsity-0.25/mask.pmask',
            'jack-seed1/mask.pmask',
        ],
    ],
)
def test_a_sweep(masks, paths):
    told = [('Jack.', 0), ('Walt.', 0), ('Jack.', 1)]
    given = [(path, *own) for path, own in zip(paths, told, strict=True)]
    found, kind = labels.compared(masks(*given), None)
    assert kind == labels.SEED
    assert _names(found) == [
        ('jack', 'seed 0'),
        ('walt', 'seed 0'),
        ('jack', 'seed 1'),
    ]


def test_variants_are_named_by_folders(masks):
    found, kind = labels.compared(
        masks(
            ('jack/half/learned/mask.pmask', 'Jack.', 0),
            ('walt/half/one_shot/mask.pmask', 'Walt.', None),
            ('jack/half/one_shot/mask.pmask', 'Jack.', 0),
            ('walt/half/learned/mask.pmask', 'Walt.', 0),
            ('ida/half/one_shot/mask.pmask', 'Ida.', 0),
        ),
        None,
    )
    assert kind == labels.VARIANT
    assert _names(found) == [
        ('jack', 'learned'),
        ('walt', 'one_shot'),
        ('jack', 'one_shot'),
        ('walt', 'learned'),
        ('ida', 'one_shot'),
    ]


def test_loose_files(masks):
    found, kind = labels.compared(
        masks(
            ('jack-seed0.pmask', 'Jack.', None),
            ('jack-seed1.pmask', 'Jack.', None),
            ('walt.pmask', 'Walt.', None),
        ),
        None,
    )
    assert kind == labels.NUMBER
    assert _names(found) == [
        ('jack', 'repetition 1'),
        ('jack', 'repetition 2'),
        ('walt', 'repetition 1'),
    ]


def test_a_seed_twice_is_no_name(masks):
    given = masks(('a.pmask', 'Jack.', 1), ('b.pmask', 'Jack.', 1))
    found, kind = labels.compared(given, None)
    assert kind == labels.NUMBER
    assert [mask.repetition for mask in found] == ['repetition 1', 'repetition 2']
    given[1] = dataclasses.replace(given[1], seed=2)
    assert labels.compared(given, None)[1] == labels.SEED
    given[1] = dataclasses.replace(given[1], seed=None)
    assert labels.compared(given, None)[1] == labels.NUMBER


def test_masks_of_no_persona_are_each_their_own(masks):
    found, _ = labels.compared(
        masks(('a.pmask', '', None), ('b.pmask', '', None)), None
    )
    assert [mask.persona for mask in found] == ['a', 'b']


def test_personas_of_one_name_are_told_apart(masks):
    found, _ = labels.compared(
        masks(('x/a-1.pmask', 'One.', None), ('x/a-2.pmask', 'One.', None),
              ('y/a-1.pmask', 'Two.', None), ('x/a-3.pmask', 'Two.', None)),
        None,
    )  # fmt: skip
    assert [mask.persona for mask in found] == ['a', 'a', 'a (2)', 'a (2)']


def test_given_names(masks):
    given = masks(
        ('a.pmask', 'Walt.', None), ('b.pmask', 'Jack.', None), ('c.pmask', 'Walt.', 1)
    )
    found, _ = labels.compared(given, ' Walt , Jack\n')
    assert [mask.persona for mask in found] == ['Walt', 'Jack', 'Walt']
    for names in ('Walt', 'Walt,Jack,Ida', 'Walt,Walt', 'Walt,'):
        with pytest.raises(errors.InputError, match='2 different names') as caught:
            labels.compared(given, names)
        assert repr(names) in str(caught.value)

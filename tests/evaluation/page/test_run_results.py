"""What a run directory says of itself, for its page."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppjax.evaluation.page import plots, report
from ppjax.personas import prompts

_PERSONA = 'Old Bram has poled a ferry for years. He is dry.'


def test_kept_share():
    mask = np.array([[1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]], bool)
    want: Callable[..., Any] = np.testing.assert_allclose
    want(plots.kept_share(mask, 7), mask)
    want(plots.kept_share(mask, 100), mask)
    want(plots.kept_share(mask, 2), [[0.75, 0.0], [1.0, 1 / 3]])
    want(plots.kept_share(mask, 1), [[3 / 7], [5 / 7]])


@pytest.mark.parametrize(
    'persona, name',
    [
        ('Captain Jack Sparrow is a pirate.', 'Captain Jack Sparrow'),
        ("Jix 'Tailwind' Okonkwo has a ship.", "Jix 'Tailwind' Okonkwo"),
        ('Émile, a writer', 'Émile'),
        ('You are Bram, a ferryman.', ''),
        ('A man is here.', ''),
        ('likes rivers', ''),
        ('', ''),
    ],
)
def test_name_of(persona, name):
    assert report.name_of(persona) == name


def test_persona_of():
    assert report.persona_of(prompts.persona_prompt(_PERSONA)) == _PERSONA
    assert report.persona_of('Be brief.') == 'Be brief.'

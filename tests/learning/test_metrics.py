"""The guard against losses that are no numbers."""

import numpy as np
import pytest

from ppjax.base import errors
from ppjax.learning import metrics


@pytest.mark.parametrize(
    ('loss', 'grad_norm', 'named'),
    [('nan', 1, 'loss nan, gradient norm 1.0'), (2, 'inf', 'gradient norm inf')],
)
def test_non_finite_figures_name_step_and_examples(loss, grad_norm, named):
    with pytest.raises(errors.InputError, match=rf'Step 7: .*{named}.*a-1, b-2'):
        metrics.check_finite(np.float32(loss), np.float32(grad_norm), 7, ['a-1', 'b-2'])


def test_scores_that_are_no_numbers_stop_a_run():
    with pytest.raises(errors.InputError, match=r'Step 7: .*, norm of scores inf.*a-1'):
        metrics.check_finite(2.0, 1.0, 7, ['a-1'], score_norm=float('inf'))


def test_finite_figures_pass():
    metrics.check_finite(np.float32(2), np.float32(1), 7, [])

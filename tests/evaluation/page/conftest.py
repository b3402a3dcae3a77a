"""The results of an evaluation, and pages without drawings."""

import copy
import json
from typing import Any

import pytest

from ppjax.pages import drawing
from tests.evaluation.page import samples


@pytest.fixture(scope='module')
def _made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    judged = samples.judge_result()
    found = {
        'persona_likelihood': samples.likelihood_result(),
        'plain_likelihood': samples.likelihood_result(),
        'answers': samples.answers_result(),
        'judge': judged,
        'failures': samples.failures_result(
            judged, tmp_path_factory.mktemp('failures')
        ),
        'fidelity': samples.fidelity_result(),
        'multiturn': samples.multiturn_result(),
        'piqa': samples.benchmark_result('piqa', 2),
        'openbookqa': samples.benchmark_result('openbookqa', 4),
        'mmlu': samples.benchmark_result('mmlu', 4, ('college_physics', 'virology')),
        'measured_efficiency': samples.efficiency_result(),
    }
    # As JSON keeps them: tuples come back as lists.
    return json.loads(
        json.dumps(
            {name: own | {'versions': samples.VERSIONS} for name, own in found.items()}
        )
    )


@pytest.fixture
def results(_made: dict[str, Any]) -> dict[str, Any]:
    """Every result of an evaluation of a dense and a pruned model."""
    return copy.deepcopy(_made)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawings, which take nearly all of a page's time."""
    monkeypatch.setattr(drawing.Drawing, 'svg', '')

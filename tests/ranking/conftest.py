"""Studies of a few answers, and a judge for them."""

from collections.abc import Callable
import pathlib
from typing import Any

import pytest

from ppjax.ranking import answer_files, questionnaire, study
from tests.ranking import samples


@pytest.fixture
def sources(tmp_path: pathlib.Path) -> str:
    """--answers of three models that all answer six questions."""
    parts = [
        f'{model}={samples.write_rows(tmp_path / f"{model}.jsonl", samples.rows(model))}'
        for model in samples.MODELS
    ]
    return ','.join(parts)


@pytest.fixture
def make_study(sources: str, tmp_path: pathlib.Path) -> Any:
    """Opens a study of so many items in `tmp_path`/name."""
    opened = []

    def make(items: int = 2, *, seed: int = 0, name: str = 'study') -> study.Study:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        wanted = questionnaire.draw(answer_files.read(sources), count=items, seed=seed)
        opened.append(study.Study(folder / study.NAME))
        opened[-1].begin(wanted)
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def ranking_server(
    serve_json: Callable[[Callable[[Any], tuple[int, Any]]], str],
) -> samples.RankingServer:
    return samples.RankingServer(serve_json)

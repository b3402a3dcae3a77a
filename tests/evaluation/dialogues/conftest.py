"""A log of dialogues, and a server that speaks."""

import pytest

from tests.evaluation.dialogues import speaking_server


@pytest.fixture
def log(tmp_path):
    return tmp_path / 'evaluation' / 'dialogues.jsonl'


@pytest.fixture
def server(serve_json: speaking_server.ServeJson) -> speaking_server.Server:
    return speaking_server.Server(serve_json)

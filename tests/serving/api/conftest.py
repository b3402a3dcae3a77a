"""A service of fakes, and who asks it."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette import testclient
import transformers

from ppjax.serving.api import app, service, texts
from tests.serving import fakes

SAID = 'Ahoy, matey! Żółw 😂 sails on.'


@pytest.fixture(scope='session')
def own(smollm2_tokenizer: transformers.PreTrainedTokenizerBase) -> texts.Texts:
    return fakes.texts_of(smollm2_tokenizer)


@pytest.fixture
def engine(own: texts.Texts) -> fakes.Engine:
    return fakes.Engine(fakes.saying(own, SAID))


@pytest.fixture
def made(own: texts.Texts, engine: fakes.Engine) -> Iterator[service.Service]:
    found = fakes.make_service(
        own, engine, limits=service.Limits(body=20_000, messages=6, choices=4)
    )
    yield found
    found.close()


@pytest.fixture
def client(made: service.Service) -> Iterator[testclient.TestClient]:
    with testclient.TestClient(
        app.application(made), base_url='http://localhost:8080'
    ) as found:
        yield found


@pytest.fixture
def chat() -> dict[str, Any]:
    """A request to jack."""
    return {'model': 'jack', 'messages': [{'role': 'user', 'content': 'Hello?'}]}

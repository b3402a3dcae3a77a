"""Mean hidden states, against transformers."""

import numpy as np
import pytest
import torch
import transformers

from ppjax.analysis import config, embeddings, sources
from ppjax.base import errors
from ppjax.masking import pmask
from ppjax.models import base_model, text_states
from ppjax.personas import prompts

_TEXTS = ('A lighthouse keeper who counts ships.', 'Cooks. ' * 40)


@pytest.fixture
def mask(chatty_model, make_mask, tmp_path):
    base = base_model.open_base_model(str(chatty_model))
    path = tmp_path / 'a.pmask'
    made = make_mask(
        np.arange(80).reshape(2, 40) % 2 == 0,
        base_model=str(chatty_model),
        base_fingerprint=base.fingerprint(),
    )
    pmask.save(path, made)
    (found,) = sources.read(str(path))
    return found


def _config(**changes):
    return config.MasksConfig(**({'masks': 'x', 'output_dir': 'out'} | changes))


def _hf(path, text):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokens = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states[-1]
    return states[0].mean(dim=0).numpy()


def test_means_are_those_of_transformers(chatty_model, mask):
    wanted = [_hf(chatty_model, text) for text in _TEXTS]
    # The base that the mask names, the one given, and a model of its own.
    for changes in (
        {'embeddings': 'base'},
        {'embeddings': 'base', 'base_model': str(chatty_model)},
        {'embeddings': 'local', 'embedding_model': str(chatty_model)},
    ):
        found = embeddings.embed(_config(**changes), mask, _TEXTS)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


def test_what_a_tokenizer_adds_is_left_out_of_the_mean(chatty_model, monkeypatch):
    base = base_model.open_base_model(str(chatty_model))
    tokenizer = base.tokenizer()
    plain = tokenizer.encode(_TEXTS[0])

    class Framed:
        all_special_ids = [1]  # noqa: RUF012

        def encode(self, text):
            return [1, *plain]

    monkeypatch.setattr(base_model.BaseModel, 'tokenizer', lambda self: Framed())
    (found,) = text_states.mean_states(base, _TEXTS[:1], dtype='float32')
    model = transformers.AutoModelForCausalLM.from_pretrained(
        chatty_model, dtype=torch.float32
    )
    with torch.no_grad():
        states = model(torch.tensor([[1, *plain]]), output_hidden_states=True)
    wanted = states.hidden_states[-1][0, 1:].mean(dim=0).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_another_base_model_is_refused(mask, tiny_models):
    other = tiny_models('llama').path
    cfg = _config(embeddings='base', base_model=str(other))
    with pytest.raises(errors.InputError, match='This mask is for 2 layers of 40'):
        embeddings.embed(cfg, mask, _TEXTS)


def test_texts_of_no_or_too_many_tokens_are_refused(chatty_model):
    base = base_model.open_base_model(str(chatty_model))
    for text in ('', 'ships ' * base.config.max_position):
        with pytest.raises(errors.InputError, match='cannot be embedded'):
            text_states.mean_states(base, [text], dtype='float32')


def test_cosines():
    found = embeddings.cosines(np.array([[3.0, 0.0], [2.0, 2.0], [0.0, -1.0]]))
    half = 2**-0.5
    np.testing.assert_allclose(
        found, [[1, half, 0], [half, 1, -half], [0, -half, 1]], atol=1e-12
    )


def test_the_text_is_the_personas_own():
    assert embeddings.text_of(prompts.persona_prompt('A cook. ')) == 'A cook.'
    assert embeddings.text_of(' You are a cook. ') == 'You are a cook.'

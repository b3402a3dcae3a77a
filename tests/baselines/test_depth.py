"""Perplexities without a block, against transformers with that block taken out."""

import copy

import numpy as np
import pytest
import torch

from ppjax.baselines import config, methods
from ppjax.baselines import texts as texts_lib
from ppjax.data import chat
from ppjax.parallel import sharding


def _without(hf, layer):
    """transformers' model, one of its layers deleted."""
    cut = copy.deepcopy(hf)
    del cut.model.layers[layer]
    for index, block in enumerate(cut.model.layers):
        block.self_attn.layer_idx = index
    cut.config.num_hidden_layers = len(cut.model.layers)
    return cut


def _perplexity(hf, texts):
    """Of the answers' tokens, all with the same weight."""
    total, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor(text.tokens)[None]
        with torch.no_grad():
            logits = hf(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        own = logits[text.answer_start - 1 : -1].double().log_softmax(-1)
        total -= float(own.gather(1, tokens[0, text.answer_start :, None]).sum())
        count += text.num_answer_tokens
    return np.exp(total / count)


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
def test_perplexities_are_those_of_transformers_without_the_block(name, tiny_models):
    tiny = tiny_models(name)
    rng = np.random.default_rng(4)
    texts = [
        chat.Example(rng.integers(3, 97, length).astype(np.int32), start, str(length))
        for length, start in ((13, 1), (31, 12), (17, 1), (9, 6), (22, 3))
    ]
    cfg = config.PruneConfig(
        base_model=str(tiny.path),
        method='depth',
        amount=1.0,
        spare_first=0,
        spare_last=0,
        batch_size=2,
        calibration='of no file',
        output_dir='none',
    )
    found = methods.prune(
        methods.Task(
            cfg,
            tiny.base,
            texts_lib.Texts(texts, [], 0, '', 'digest'),
            None,
            sharding.default_mesh(None),
        )
    )
    whole = range(tiny.config.num_layers)
    wanted = [_perplexity(_without(tiny.hf, layer), texts) for layer in whole]
    assert min(np.diff(np.sort(wanted))) > 1e-2
    np.testing.assert_allclose(found.facts['scores'], wanted, rtol=1e-4)
    worst = np.argmin(wanted)
    assert found.facts['blocks'] == [layer for layer in whole if layer != worst]

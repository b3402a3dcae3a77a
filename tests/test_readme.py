"""What README has people copy does what it says."""

import pathlib
import re
import runpy

import numpy as np
import pytest
import torch
import transformers

from ppjax.exporting import verify
from ppjax.masking import pmask
from ppjax.models import base_model

_README = pathlib.Path(__file__).parents[1] / 'README.md'


@pytest.mark.parametrize('with_gains', [False, True])
def test_a_mask_is_applied_with_transformers_alone(chatty_model, tmp_path, with_gains):
    [code] = re.findall(
        r'```python\n(import torch.*?)```', _README.read_text(), re.DOTALL
    )
    (tmp_path / 'copied.py').write_text(code)
    made = runpy.run_path(str(tmp_path / 'copied.py'))
    base = base_model.open_base_model(str(chatty_model))
    rng = np.random.default_rng(0)
    shape = base.config.num_layers, base.config.d_ff
    kept = np.argsort(rng.random(shape), axis=1) < 17
    gains = rng.normal(1, 0.2, (shape[0], 17)).astype(np.float16)
    path = tmp_path / 'a.pmask'
    pmask.save(
        path,
        pmask.PersonaMask(
            mask=kept,
            base_model='tiny',
            base_fingerprint=base.fingerprint(),
            persona_sha256='0' * 64,
            gains=gains if with_gains else None,
        ),
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        chatty_model, dtype=torch.float32
    )
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        dense = model(tokens).logits.numpy()
        own = made['apply_mask'](model, path)(tokens).logits.numpy()
    masks = pmask.load(path).decoder_masks()
    ours = verify.masked_logits(base, masks, tokens.numpy(), dtype='float32')
    np.testing.assert_allclose(own, ours, atol=2e-3)
    assert np.abs(own - dense).max() > 0.1

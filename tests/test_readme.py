"""What README has people copy does what it says; what it and --help say is in reach."""

import ast
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

_ROOT = pathlib.Path(__file__).parents[1]
_README = _ROOT / 'README.md'
_VERBS = sorted(
    path.stem
    for path in (_ROOT / 'ppjax').glob('*.py')
    if "__name__ == '__main__'" in path.read_text()
)


def _anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    prose = re.sub(r'```.*?```', '', page, flags=re.DOTALL)
    headings = re.findall(r'^#+ (.*)$', prose, re.MULTILINE)
    return {
        re.sub(r'[^\w -]', '', h).strip().lower().replace(' ', '-') for h in headings
    }


def test_readme_is_read_in_five_minutes():
    assert len(_README.read_text().splitlines()) <= 250


@pytest.mark.parametrize('page', ['README.md', 'BUILD.md', 'RESULTS.md'])
def test_links_lead_somewhere(page):
    links = re.findall(
        r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', (_ROOT / page).read_text()
    )
    for path, anchor in links:
        target = _ROOT / (path or page)
        assert target.exists(), path
        if anchor:
            assert anchor in _anchors(target.read_text()), anchor


def test_readme_lists_every_verb_once():
    rows = re.findall(r'^\| `(\w+)` \| .+ \|$', _README.read_text(), re.MULTILINE)
    assert sorted(rows) == _VERBS


@pytest.mark.parametrize('verb', _VERBS)
def test_help_can_be_read_in_a_terminal(verb):
    source = (_ROOT / 'ppjax' / f'{verb}.py').read_text()
    said = ast.get_docstring(ast.parse(source), clean=False)
    assert [line for line in said.splitlines() if len(line) > 80] == []
    # absl puts the program's name in the place of what % may begin.
    assert '%' not in said


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

"""What README has people copy does what it says; what it and --help say is in reach."""

import ast
import importlib
import pathlib
import re
import runpy
import shlex

from absl import flags as absl_flags
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import flags
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
# What tells people what to type: pages, help, and examples of a service.
_TEXTS = (
    *('README.md', 'BUILD.md', 'RESULTS.md'),
    *(f'ppjax/{verb}.py' for verb in _VERBS),
    *sorted(f'launch/serve/{path.name}' for path in _ROOT.glob('launch/serve/*')),
)
# A word that follows a verb, and flags that follow it without anything between them.
_COMMAND = re.compile(
    r"""ppjax\.(\w+)(?: +\w+(?=[ \\]))?((?:[\s\\]+--\w+(?:='[^']*'|=[^\s'"`),;]*)?)*)"""
)
# Of other programs, and of scripts in launch/.
_OTHERS = {'no', 'processes', 'devices', 'minutes', 'dry_run', 'tiny', 'seconds'}


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


def _text(name: str) -> str:
    text = (_ROOT / name).read_text()
    if name.endswith('.py'):
        return ast.get_docstring(ast.parse(text)) or ''
    # A Dockerfile has a list of words.
    return re.sub(r'",[\s\\]+"', ' ', text)


@pytest.fixture(scope='module')
def flags_of() -> dict[str, absl_flags.FlagValues]:
    """By verb: what `flags.run` defines of its settings."""
    found = {}
    for verb in _VERBS:
        module = importlib.import_module(f'ppjax.{verb}')
        source = pathlib.Path(module.__file__).read_text()
        [(inside, name)] = re.findall(r'flags\.run\((\w+)\.(\w+)', source)
        found[verb] = own = absl_flags.FlagValues()
        flags.define(getattr(getattr(module, inside), name), own)
        if 'joined=True' in source:
            flags.define(flags._Processes, own)
        absl_flags.DEFINE_bool('help', False, '', flag_values=own)
    return found


def _refused(flags_of, text: str) -> list[str]:
    """What is wrong with the commands of a text."""
    wrong = []
    for verb, given in _COMMAND.findall(text):
        if verb not in flags_of:
            continue
        words = shlex.split(given.replace('\\\n', ' '))
        files = [w.partition('=')[2] for w in words if w.startswith('--flagfile=')]
        # `configs/sweep-$axis.flags` stands for all of its kind.
        patterns = [re.sub(r'\$\w+', '*', file) for file in files]
        wrong += [p for p in patterns if not list(_ROOT.glob(p))]
        words = [w for w in words if not w.startswith('--flagfile=')]
        try:
            flags_of[verb]([verb, *words])
        except absl_flags.Error as error:
            wrong.append(f'{verb}: {error}')
    return wrong


@pytest.mark.parametrize('name', _TEXTS)
def test_commands_have_flags_that_exist(flags_of, name):
    assert _refused(flags_of, _text(name)) == []


@pytest.mark.parametrize(
    'name', [n for n in _TEXTS if n.endswith(('ME.md', 'LD.md', '.py'))]
)
def test_flags_that_are_named_exist(flags_of, name):
    known = {flag for own in flags_of.values() for flag in own} | {'flagfile'}
    named = set(re.findall(r'(?<![\w-])--([a-z]\w*)', _text(name)))
    unknown = named - known - _OTHERS
    assert {flag for flag in unknown if flag.removeprefix('no') not in known} == set()


def test_commands_are_found_and_their_flags_looked_up(flags_of):
    assert len(_COMMAND.findall(_text('README.md'))) >= 15
    [(verb, given)] = _COMMAND.findall(_text('launch/serve/Dockerfile'))
    assert verb == 'serve'
    assert '--personas=' in given
    for text in (
        'python -m ppjax.export --run=a',
        "ppjax.sweep --grid='seed=0 1' \\\n    --perosna=jack",
        'python -m ppjax.bench gguf --file=a.gguf',
        '"ppjax.serve --base_model=/model --hots=0.0.0.0"]',
        'ppjax.train --flagfile=configs/none.flags',
        'ppjax.train --budget=some',
    ):
        assert len(_refused(flags_of, text)) == 1, text


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

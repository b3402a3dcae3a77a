"""Held-out answers under the full, a short and no persona prompt."""

import json

import pytest
import torch
import transformers

from ppjax import evaluate
from ppjax.base import errors
from ppjax.evaluation import config

_SHORT = 'You are Bram the ferryman.'


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch):
    monkeypatch.setattr(evaluate.compile_cache, 'enable', lambda: None)


def _config(run, **changes) -> config.EvaluateConfig:
    settings = {
        'output_dir': str(run.path),
        'tasks': 'likelihood',
        'prompts': 'full,short,none',
        'rounds': 1,
    }
    return config.EvaluateConfig(**(settings | changes))


def _nll(model, tokenizer, messages) -> tuple[float, int, int]:
    """(-log p of the answer, its tokens, the prompt's), by transformers."""
    before, whole = (
        tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=x)
        for part, x in ((messages[:-1], True), (messages, False))
    )
    prompt = tokenizer.encode(before, add_special_tokens=False)
    answer = tokenizer.encode(
        whole.removeprefix(before).rstrip('\n'), add_special_tokens=False
    )
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    found = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return -float(found[range(len(answer)), answer].sum()), len(answer), len(prompt)


def test_every_prompt_is_measured_beside_the_dense_model(
    make_run, chatty_model, capsys
):
    run = make_run(prompt_dropout=0.5, short_prompt=_SHORT)
    assert evaluate.main(_config(run)) == 0
    said = capsys.readouterr().out
    file = run.path / 'results' / 'persona_likelihood.json'
    stored = json.loads(file.read_text('utf-8'))
    tokenizer = run.base.tokenizer()
    models = {
        name: transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32
        ).eval()
        for name, path in (('dense', chatty_model), ('pruned', run.path / 'hf'))
    }
    rows = [
        json.loads(line)['messages']
        for line in run.heldout.read_text('utf-8').splitlines()
    ]
    systems = {
        'full': rows[0][:1],
        'short': [{'role': 'system', 'content': _SHORT}],
        'none': [],
    }
    means, lengths = {}, {}
    for prompt, system in systems.items():
        for name, model in models.items():
            found = [_nll(model, tokenizer, [*system, *row[1:]]) for row in rows]
            sums = [sum(x) for x in zip(*found, strict=True)]
            means[prompt, name] = sums[0] / sums[1]
            lengths[prompt] = sums[2] / len(rows)
    for prompt in systems:
        own = stored['prompts'][prompt]
        assert own['prompt_tokens'] == pytest.approx(lengths[prompt])
        for name in models:
            figures = own['models'][name]
            mean = means[prompt, name]
            assert figures['nll']['mean'] == pytest.approx(mean, rel=1e-4)
            change = figures['nll_difference_to_full']
            assert change['mean'] == pytest.approx(
                mean - means['full', 'dense'], abs=1e-3
            )
            assert change['interval'][0] <= change['mean'] <= change['interval'][1]
            assert own['first_token_seconds'][name]['median'] > 0
        assert own['models']['pruned']['nll_difference']['mean'] == pytest.approx(
            means[prompt, 'pruned'] - means[prompt, 'dense'], abs=1e-3
        )
    # What it says without shorter prompts stays what it was.
    assert stored['models'] == {
        name: {key: x for key, x in own.items() if key != 'nll_difference_to_full'}
        for name, own in stored['prompts']['full']['models'].items()
    }
    saved = lengths['full'] - lengths['short']
    assert saved > 50
    printed = ' '.join(said.split())
    assert 'With less of a prompt' in printed
    assert f'Short prompt, {lengths["short"]:.0f} tokens, {saved:.0f} fewer' in printed
    assert '- less that of dense under the persona prompt' in printed
    assert 'With less of a prompt' in (run.path / 'report.html').read_text('utf-8')


def test_prompts_are_checked(make_run):
    run = make_run()
    with pytest.raises(errors.InputError, match=r"--prompts must be .* got 'shorter'"):
        _config(run, prompts='full,shorter')
    with pytest.raises(errors.InputError, match='--prompts=short needs --short_prompt'):
        evaluate.main(_config(run))

"""The model card says what was done, and only that."""

from collections.abc import Callable
import dataclasses
import pathlib
import re
from typing import Any

import huggingface_hub
import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.exporting import model_card
from ppjax.models import base_model, open_checkpoint

_PERSONA = 'You are Bram, a ferryman.'


_FACTS = model_card.Facts(
    base_name='owner/some-model',
    base_fingerprint='ab' * 32,
    license={'license': 'apache-2.0'},
    system_prompt=_PERSONA,
    chat_template=True,
    num_layers=30,
    d_ff=1536,
    keep=1152,
    dtype='bfloat16',
    parameters=(134_515_008, 114_608_448),
    weight_bytes=(269_030_016, 229_216_896),
    command='python -m ppjax.export --output_dir=run',
)


def test_card_says_what_was_done(tmp_path: pathlib.Path) -> None:
    facts = dataclasses.replace(
        _FACTS,
        sparsity=0.26,
        calibration='/home/someone/data/bram|x.jsonl',
        calibration_rows=480,
        settings='--sparsity=0.26\n',
        likelihood={
            'models': {'dense': {'nll': 2.5}, 'learned': {'nll': 2.625}, 'odd': None},
            'heldout': {'source': 'demo:ferryman', 'rows': 12, 'answer_tokens': 3456},
        },
    )
    text = model_card.render(facts)
    file = tmp_path / 'README.md'
    file.write_text(text, encoding='utf-8')
    card = huggingface_hub.ModelCard.load(file)
    assert card.data.to_dict() == {
        'base_model': 'owner/some-model',
        'base_model_relation': 'finetune',
        'library_name': 'transformers',
        'license': 'apache-2.0',
        'pipeline_tag': 'text-generation',
        'tags': ['pruned', 'roleplay', 'persona', 'ppjax'],
    }
    for part in (
        _PERSONA,
        'ab' * 32,
        '1,152 of 1,536',
        'multiple of 128',
        '25.00% (asked for: 26.00%)',
        '134,515,008 before, 114,608,448 after',
        '269.0 MB before, 229.2 MB after',
        '`bram|x.jsonl`, 480 conversations',
        '--sparsity=0.26',
        'python -m ppjax.export --output_dir=run',
        '| `dense` | 2.5000 |',
        '| `learned` | 2.6250 |',
        '12 answers, 3,456 tokens',
        'Factual recall drops first',
        'arXiv:2606.14695',
    ):
        assert part in text
    assert '/home' not in text
    assert 'odd' not in text


def test_card_without_what_is_not_known() -> None:
    text = model_card.render(dataclasses.replace(_FACTS, license={}, system_prompt=''))
    assert 'license:' not in text
    assert 'Not recorded' in text
    assert 'Held-out' not in text
    assert 'Calibration' not in text
    assert "'role': 'system'" not in text


@pytest.mark.parametrize('sent, said', [('', 'used without it'), ('Be Bram.', 'under')])
def test_card_of_a_model_used_under_another_prompt(sent: str, said: str) -> None:
    text = model_card.render(dataclasses.replace(_FACTS, sent_prompt=sent))
    assert _PERSONA in text
    assert said in text and 'also in `persona.json`' not in text
    assert 'without the prompt, it is worse' not in ' '.join(text.split())
    assert ("'role': 'system'" in text) == bool(sent)


@hypothesis.given(
    text=st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ['```', '````', '---', '#', '|', '`', '\n', ': ', "'", '"', '{']
        )
    ).map(''.join)
)
@hypothesis.settings(max_examples=150)
def test_odd_texts_stay_where_they_are(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Line ends other than \n are the same to Markdown, and blanks around are cut.
    text = 'x' + re.sub(r'\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]', '\n', text) + 'x'
    path = text.replace('\0', '')  # What has been opened as a file.
    facts = dataclasses.replace(
        _FACTS, base_name=path, system_prompt=text, calibration=text, settings=text
    )
    card = model_card.render(facts)
    file = tmp_path_factory.getbasetemp() / 'odd.md'
    file.write_text(card, encoding='utf-8')
    front_matter = huggingface_hub.metadata_load(file)
    assert front_matter is not None
    assert front_matter['tags'] == ['pruned', 'roleplay', 'persona', 'ppjax']
    found = re.search(r'^(`{3,})text\n(.*?)\n\1$', card, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert found[2] == text.encode('utf-8', 'replace').decode()
    # Every fence closes, so the fixed parts stand outside of any.
    outside = re.sub(r'^(`{3,})\w+\n.*?\n\1$', '', card, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r'^## .*$', outside, re.MULTILINE)
    assert headings == [
        '## Persona prompt',
        '## What was pruned',
        '## How it was made',
        '## How to use it',
        '## Limits',
        '## Source',
    ]


@pytest.mark.parametrize(
    ('keep', 'want'), [(1152, 128), (1536, 256), (64, 64), (96, 1), (1, 1)]
)
def test_alignment(keep: int, want: int) -> None:
    assert model_card.alignment(keep) == want


def test_hub_id(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'my-model').mkdir()
    assert model_card.hub_id(str(tmp_path / 'my-model')) == 'my-model'
    assert model_card.hub_id('owner/model-1.5') == 'owner/model-1.5'
    assert model_card.hub_id('smollm2-135m') == 'HuggingFaceTB/SmolLM2-135M-Instruct'


def test_license_is_inherited(
    tiny_models: Callable[[str], Any],
    smollm2_base: base_model.BaseModel,
    tmp_path: pathlib.Path,
) -> None:
    def inherited(readme: str) -> dict[str, Any]:
        reader = open_checkpoint.open_checkpoint(tiny_models('llama').path)
        (tmp_path / 'README.md').write_text(readme)
        reader.path = tmp_path
        return model_card.inherited_license(reader)

    assert inherited('---\nlicense: mit\ntags: [a]\n---\n# X') == {'license': 'mit'}
    assert inherited(
        '---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE\n---\n'
    ) == {'license': 'other', 'license_name': 'llama3.2', 'license_link': 'LICENSE'}
    assert inherited('# No front matter') == {}
    assert inherited('---\nlicense: {a: b}\n---\n') == {}
    assert inherited('---\nlicense: [unclosed\n---\n') == {}
    (tmp_path / 'README.md').unlink()
    reader = open_checkpoint.open_checkpoint(tiny_models('llama').path)
    assert model_card.inherited_license(reader) == {}
    want = {'license': 'apache-2.0'}
    assert model_card.inherited_license(smollm2_base.reader) == want

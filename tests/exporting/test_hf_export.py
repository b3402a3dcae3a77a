"""The exported directory against transformers, and byte by byte against its base."""

from collections.abc import Callable
import dataclasses
import errno
import json
import pathlib
import re
from typing import Any

import huggingface_hub
import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.data import chat
from ppjax.exporting import hf_export, model_card
from ppjax.models import base_model, checkpoint, open_checkpoint, sliced

_KEEP = 20
_PERSONA = 'You are Bram, a ferryman.'


def _mask(base: base_model.BaseModel, keep: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((base.config.num_layers, base.config.d_ff), bool)
    for row in mask:
        row[rng.permutation(len(row))[:keep]] = True
    return mask


@pytest.fixture(scope='module')
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One token a letter."""
    vocab = {token: i for i, token in enumerate(['<e>', *'abcdefghij ', '<x>'])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token='<e>',
        additional_special_tokens=['<x>'],
        chat_template='{% for m in messages %}{{ m.content }}<x>{% endfor %}',
    )


@pytest.fixture
def export(
    tokenizer: transformers.PreTrainedTokenizerBase, tmp_path: pathlib.Path
) -> Callable[..., pathlib.Path]:
    def run(base: base_model.BaseModel, mask: np.ndarray, **options: Any) -> Any:
        options = {
            'dtype': 'float32',
            'tokenizer': tokenizer,
            'model_card': '# Card\n',
            'system_prompt': _PERSONA,
            'name': 'out',
        } | options
        target = tmp_path / options.pop('name')
        hf_export.export_pruned(base, mask, target, **options)
        return target

    return run


def _load(path: pathlib.Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model, if it finds every weight that it wants and no other."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, output_loading_info=True
    )
    assert not info['missing_keys']
    assert not info['unexpected_keys']
    assert not info['mismatched_keys']
    return model.eval()


def _files(path: pathlib.Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_exported_model_in_pytorch_equals_the_masked_dense_model(
    any_tiny: Any, export: Callable[..., pathlib.Path]
) -> None:
    mask = _mask(any_tiny.base, _KEEP)
    tokens = np.random.default_rng(1).integers(0, 97, (3, 40))
    model = _load(export(any_tiny.base, mask))
    with torch.inference_mode():
        got = model(torch.tensor(tokens)).logits.numpy()
    want = any_tiny.logits(tokens, ffn_mask=mask)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    assert model.config.intermediate_size == _KEEP
    assert model.config.rope_parameters == any_tiny.hf.config.rope_parameters


def test_weights_are_the_bases_own_without_the_dropped_channels(
    any_tiny: Any, export: Callable[..., pathlib.Path]
) -> None:
    base, mask = any_tiny.base, _mask(any_tiny.base, _KEEP)
    reader = open_checkpoint.open_checkpoint(export(base, mask))
    # A tied head is the embedding: writing it would untie the two for some loaders.
    assert reader.names() == base.reader.names()
    assert ('lm_head.weight' in reader.names()) != base.config.tie_embeddings
    for name in reader.names():
        want = base.reader.read(name)
        if found := re.search(r'layers\.(\d+)\.mlp\.(\w+)_proj\.(\w+)', name):
            kept = mask[int(found[1])]
            if found[2] != 'down':
                want = want[kept]
            elif found[3] == 'weight':
                want = want[:, kept]
        np.testing.assert_array_equal(reader.read(name), want, err_msg=name)


def test_a_tied_bases_stored_head_is_not_written(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    tiny = tiny_models('llama-tied')
    weights = {name: tiny.base.reader.read(name) for name in tiny.base.reader.names()}
    weights['lm_head.weight'] = weights['model.embed_tokens.weight']
    (tmp_path / 'base').mkdir()
    safetensors_numpy.save_file(weights, tmp_path / 'base' / 'model.safetensors')
    config = (tiny.path / 'config.json').read_text()
    (tmp_path / 'base' / 'config.json').write_text(config)
    base = base_model.open_base_model(str(tmp_path / 'base'))
    target = export(base, _mask(base, _KEEP))
    assert 'lm_head.weight' not in open_checkpoint.open_checkpoint(target).names()
    model = _load(target)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_shards_hold_the_same_bytes_as_one_file(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = tiny_models('llama-biased')
    mask = _mask(tiny.base, _KEEP)
    whole = export(tiny.base, mask, name='whole')
    # Pieces of one row, so that every seam between pieces is met.
    monkeypatch.setattr(hf_export, '_PIECE_BYTES', 1)
    shards = export(tiny.base, mask, name='shards', shard_bytes=12_000)
    files = sorted(shards.glob('*.safetensors'))
    assert len(files) > 3
    assert files[1].name == f'model-00002-of-{len(files):05d}.safetensors'
    index = json.loads((shards / 'model.safetensors.index.json').read_text())
    one, many = (
        open_checkpoint.open_checkpoint(whole),
        open_checkpoint.open_checkpoint(shards),
    )
    assert one.names() == many.names() == sorted(index['weight_map'])
    for name in one.names():
        assert one.read(name).tobytes() == many.read(name).tobytes(), name
    assert index['metadata']['total_size'] == sum(
        one.read(name).nbytes for name in one.names()
    )
    for file in files:
        with safetensors.safe_open(file, framework='np') as handle:
            assert handle.metadata() == {'format': 'pt'}
            sizes = [handle.get_tensor(name).nbytes for name in sorted(handle.keys())]
        assert sum(sizes) <= 12_000 or len(sizes) == 1
    states = _load(whole).state_dict(), _load(shards).state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_bfloat16_base_stays_bfloat16(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_models('qwen3').path, dtype=torch.bfloat16
    )
    hf.save_pretrained(tmp_path / 'bf16')
    base = base_model.open_base_model(str(tmp_path / 'bf16'))
    dtype = hf_export.default_dtype(base.reader)
    assert dtype == 'bfloat16'
    mask = _mask(base, _KEEP)
    target = export(base, mask, dtype=dtype)
    with safetensors.safe_open(target / 'model.safetensors', framework='pt') as handle:
        for name in sorted(handle.keys()):
            assert handle.get_slice(name).get_dtype() == 'BF16'
        got = handle.get_tensor('model.layers.2.mlp.down_proj.weight')
    want = hf.state_dict()['model.layers.2.mlp.down_proj.weight']
    assert torch.equal(got, want[:, torch.tensor(mask[2])])
    assert transformers.AutoConfig.from_pretrained(target).dtype == torch.bfloat16


@pytest.mark.parametrize('dtype', hf_export.DTYPES)
def test_every_dtype_rounds_as_pytorch_does(
    dtype: str, tiny_models: Callable[[str], Any], export: Callable[..., pathlib.Path]
) -> None:
    tiny = tiny_models('qwen2')
    target = export(tiny.base, np.ones((3, 52), bool), dtype=dtype)
    model = _load(target, getattr(torch, dtype))
    for name, value in tiny.hf.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(getattr(torch, dtype)))


class _Stub(checkpoint.CheckpointReader):
    """Headers only."""

    def __init__(self, tensors: dict[str, tuple[tuple[int, ...], Any]]):
        self._tensors = tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0]

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._tensors[name][1])

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        raise AssertionError('The headers are enough.')


@pytest.mark.parametrize(
    ('matrices', 'want'),
    [
        ([np.float16, np.float16], 'float16'),
        ([ml_dtypes.bfloat16], 'bfloat16'),
        ([np.float32], 'float32'),
        ([np.float64], 'float32'),
        # As of a GGUF that is quantised but for its embedding.
        ([np.float16, np.float32], 'float32'),
    ],
)
def test_default_dtype_is_that_of_the_matrices(matrices: list[Any], want: str) -> None:
    tensors = {f'm{i}': ((2, 3), kind) for i, kind in enumerate(matrices)}
    # GGUF keeps norms in float32 whatever the matrices are.
    assert hf_export.default_dtype(_Stub(tensors | {'n': ((3,), np.float32)})) == want


def test_config_keeps_the_bases_keys_in_both_spellings(
    tiny_models: Callable[[str], Any], export: Callable[..., pathlib.Path]
) -> None:
    tiny = tiny_models('llama-scaled')
    original = json.loads((tiny.path / 'config.json').read_text())
    reader = tiny.base.reader
    hf_config = reader.hf_config | {'auto_map': {'AutoConfig': 'x.py'}}
    hf_config.pop('architectures')
    reader = dataclasses.replace(tiny.base, reader=_with_config(reader, hf_config))
    target = export(reader, _mask(tiny.base, _KEEP), dtype='float16')
    config = json.loads((target / 'config.json').read_text())
    changed = {'intermediate_size', 'dtype', 'torch_dtype', 'rope_parameters'}
    added = {'rope_theta', 'rope_scaling', 'torch_dtype'}
    assert config.keys() == original.keys() | added
    for key in original.keys() - changed:
        assert config[key] == original[key], key
    assert config['intermediate_size'] == _KEEP
    assert config['dtype'] == config['torch_dtype'] == 'float16'
    assert config['rope_theta'] == 777.0
    assert config['rope_scaling']['factor'] == 3.0
    assert config['rope_parameters'] == config['rope_scaling'] | {'rope_theta': 777.0}


def _with_config(reader: Any, hf_config: dict[str, Any]) -> Any:
    class Wrapped(type(reader)):
        def __init__(self) -> None:
            self.__dict__ |= reader.__dict__ | {'hf_config': hf_config}

    return Wrapped()


def test_what_stands_beside_the_weights(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tokenizer: transformers.PreTrainedTokenizerBase,
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / 'base'
    path.mkdir()
    for file in tiny_models('llama').path.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / 'LICENSE.txt').write_text('Share alike.')
    (path / 'generation_config.json').write_text('{"eos_token_id": [2, 5]}')
    base = base_model.open_base_model(str(path))
    target = export(base, _mask(base, _KEEP), system_prompt='Bröt "x"\n')
    assert json.loads((target / 'persona.json').read_text('utf-8')) == {
        'system_prompt': 'Bröt "x"\n'
    }
    assert (target / 'README.md').read_text() == '# Card\n'
    assert (target / 'LICENSE.txt').read_text() == 'Share alike.'
    generation = transformers.GenerationConfig.from_pretrained(target)
    assert generation.eos_token_id == [2, 5]

    # transformers 4 knows neither the class nor the list that 5 writes.
    config = json.loads((target / 'tokenizer_config.json').read_text())
    assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
    assert config['additional_special_tokens'] == ['<x>']
    assert 'extra_special_tokens' not in config
    again = transformers.AutoTokenizer.from_pretrained(target)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.chat_template == tokenizer.chat_template
    assert again('abc <x>j').input_ids == tokenizer('abc <x>j').input_ids


def test_parameter_counts_are_pytorchs(any_tiny: Any) -> None:
    mask = _mask(any_tiny.base, _KEEP)
    want = tuple(
        sum(p.numel() for p in model.parameters())
        for model in (any_tiny.hf, any_tiny.pruned_hf(mask))
    )
    pruned = sliced.sliced_model(any_tiny.base, mask)
    got = hf_export.parameter_count(any_tiny.base), hf_export.parameter_count(pruned)
    assert got == want


def test_a_full_disk_leaves_the_older_export(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_models('llama').base
    write = hf_export._write_shard

    def full(path: pathlib.Path, *rest: Any, **options: Any) -> None:
        if '00003' in path.name:
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, *rest, **options)

    monkeypatch.setattr(hf_export, '_write_shard', full)
    with pytest.raises(errors.InputError, match=r'^Cannot write .*No space left'):
        export(base, _mask(base, _KEEP), shard_bytes=12_000)
    assert not _files(tmp_path)
    monkeypatch.setattr(hf_export, '_write_shard', write)
    target = export(base, _mask(base, _KEEP))
    before = (target / 'model.safetensors').read_bytes()
    monkeypatch.setattr(hf_export, '_write_shard', full)
    with pytest.raises(errors.InputError, match='No space left'):
        export(base, _mask(base, _KEEP, seed=1), shard_bytes=12_000)
    assert _files(tmp_path) == {'out'}
    assert (target / 'model.safetensors').read_bytes() == before


def test_a_tokenizer_that_cannot_be_saved_is_one_clear_error(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    class Broken:
        def save_pretrained(self, folder: Any) -> None:
            raise RuntimeError('No space left on device (os error 28)')

    base = tiny_models('llama').base
    with pytest.raises(errors.InputError, match='No space left'):
        export(base, _mask(base, _KEEP), tokenizer=Broken())
    assert not _files(tmp_path)


def test_what_the_check_raises_leaves_nothing(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    base = tiny_models('llama').base

    def check(folder: pathlib.Path) -> None:
        assert {'config.json', 'model.safetensors', 'README.md'} <= _files(folder)
        raise errors.InputError('Not good.')

    with pytest.raises(errors.InputError, match=r'^Not good\.$'):
        export(base, _mask(base, _KEEP), check=check)
    assert not _files(tmp_path)


def test_weights_beyond_float16_are_refused(
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    tiny = tiny_models('llama')
    weights = {name: tiny.base.reader.read(name) for name in tiny.base.reader.names()}
    weights['model.norm.weight'][3] = 1e6
    (tmp_path / 'base').mkdir()
    safetensors_numpy.save_file(weights, tmp_path / 'base' / 'model.safetensors')
    config = (tiny.path / 'config.json').read_text()
    (tmp_path / 'base' / 'config.json').write_text(config)
    base = base_model.open_base_model(str(tmp_path / 'base'))
    with pytest.raises(errors.InputError, match=r'model\.norm\.weight.*float16'):
        export(base, _mask(base, _KEEP), dtype='float16')
    assert _files(tmp_path) == {'base'}
    export(base, _mask(base, _KEEP), dtype='bfloat16')


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.ones((3, 52)), 'bool'),
        (np.ones((2, 52), bool), r'\(3, 52\)'),
        (np.zeros((3, 52), bool), '1 or more'),
        (np.eye(3, 52, dtype=bool) | (np.arange(52) == 0), 'same number'),
    ],
)
def test_bad_masks_are_refused(
    mask: np.ndarray,
    message: str,
    tiny_models: Callable[[str], Any],
    export: Callable[..., pathlib.Path],
) -> None:
    with pytest.raises(ValueError, match=message):
        export(tiny_models('llama').base, mask)


def test_smollm2(
    smollm2_base: base_model.BaseModel,
    smollm2_tokenizer: transformers.PreTrainedTokenizerBase,
    export: Callable[..., pathlib.Path],
) -> None:
    base = smollm2_base
    dtype = hf_export.default_dtype(base.reader)
    assert dtype == 'float32'  # Of a file quantised to 4 bits.
    target = export(base, _mask(base, 1152), tokenizer=smollm2_tokenizer, dtype=dtype)
    model = _load(target)
    assert model.config.tie_word_embeddings
    assert model.config.rope_parameters['rope_theta'] == 100000.0
    want = sum(p.numel() for p in model.parameters())
    pruned = sliced.sliced_model(base, _mask(base, 1152))
    assert hf_export.parameter_count(pruned) == want

    messages = [
        {'role': 'system', 'content': _PERSONA},
        {'role': 'user', 'content': 'Is 1234 a lot of herons, Bram?'},
    ]
    renderer = chat.ChatRenderer(smollm2_tokenizer, date='2026-01-01')
    reloaded = transformers.AutoTokenizer.from_pretrained(target)
    encoded = reloaded.apply_chat_template(messages, add_generation_prompt=True)
    assert encoded['input_ids'] == renderer.prompt(messages)
    assert model.generation_config.eos_token_id == reloaded.eos_token_id == 2


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

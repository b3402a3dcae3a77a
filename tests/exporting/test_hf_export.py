"""The exported directory against transformers, and byte by byte against its base."""

from collections.abc import Callable
import dataclasses
import errno
import json
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.data import chat, stop_tokens
from ppjax.exporting import hf_export
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
    want = any_tiny.logits(tokens, channels=mask)
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
    # The tokenizer's own, and the template's, come after what was listed.
    more = stop_tokens.stop_ids({}, tokenizer) - {2, 5}
    assert generation.eos_token_id == [2, 5, *sorted(more)]

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

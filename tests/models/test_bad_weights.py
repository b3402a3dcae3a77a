"""Weights that are no numbers, contradict their config, or stand there twice."""

import json
import pathlib
import shutil
import time
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.exporting import hf_export, verify
from ppjax.models import base_model, checkpoint, loading
from ppjax.models import masks as masks_lib
from tests.models import gguf_files

_TOKENS = np.random.default_rng(4).integers(0, 97, (2, 12))
_HEAD, _EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
_SINGLE = 'model.safetensors'


@pytest.fixture
def copied(tiny_models, tmp_path):
    """Copies a tiny model; changes its tensors and config."""

    def make(variant: str, change: Any = None, **config: Any) -> pathlib.Path:
        folder = tmp_path / 'model'
        shutil.copytree(tiny_models(variant).path, folder)
        if change is not None:
            tensors = safetensors_torch.load_file(folder / _SINGLE)
            change(tensors)
            tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
            safetensors_torch.save_file(
                tensors, folder / _SINGLE, metadata={'format': 'pt'}
            )
        if config:
            file = folder / 'config.json'
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    return make


def _refused(action: Any, *parts: str) -> str:
    with pytest.raises(errors.InputError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message
    assert len(message) < 600
    for part in parts:
        assert part in message
    return message


@pytest.mark.parametrize('kind', ['float32', 'float16', 'bfloat16', 'float64'])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_every_kind_of_number_is_looked_at(kind, bad):
    kind = ml_dtypes.bfloat16 if kind == 'bfloat16' else kind
    values = np.linspace(-1, 1, 35).reshape(5, 7).astype(kind)
    limits = ml_dtypes.finfo(values.dtype)
    values[0, 0] = limits.max if kind != 'float64' else 1e38
    values[1, 1] = limits.tiny / 2
    path = pathlib.Path('m')
    assert checkpoint.refuse_not_finite(path, 't', values) is values
    assert checkpoint.refuse_not_finite(path, 't', values[:0]).size == 0
    values[3, 2] = bad
    for some in (values, values[:, 2], values.T):
        _refused(
            lambda v=some: checkpoint.refuse_not_finite(path, 't', v), 'm: ', "'t'"
        )


def test_large_numbers_are_numbers_though_their_sum_is_none():
    values = np.full((3, 5), np.finfo(np.float32).max)
    assert checkpoint.refuse_not_finite(pathlib.Path('m'), 't', values) is values
    values[1, 1], values[2, 1] = np.inf, -np.inf
    _refused(
        lambda: checkpoint.refuse_not_finite(pathlib.Path('m'), 't', values), 'm: '
    )


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_weight_that_is_no_number_is_named_by_all_that_read_it(copied, bad):
    name = 'model.layers.2.mlp.down_proj.weight'

    def damage(tensors):
        tensors[name][5, 17] = bad

    base = base_model.open_base_model(str(copied('llama', damage)))
    _refused(
        lambda: loading.load_decoder(base.reader, base.config, dtype=jnp.bfloat16),
        str(base.reader.path),
        name,
        'not finite',
    )
    # Also where the channel is sliced away, and where nothing else is read.
    mask = np.ones((3, 52), bool)
    mask[:, 17] = False
    _refused(
        lambda: hf_export.export_pruned(
            base,
            mask,
            base.reader.path / 'hf',
            dtype='float32',
            tokenizer=transformers.PreTrainedTokenizerFast(
                tokenizer_object=_tokenizer()
            ),
            model_card='',
            system_prompt='',
        ),
        name,
        'get the weights again',
    )
    assert not (base.reader.path / 'hf').exists()


def _tokenizer() -> Any:
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab={'a': 0}, merges=[]))


def test_a_gguf_with_a_scale_that_is_no_number(tmp_path):
    model = gguf_files.model_of(gguf_files.config_of('llama', **gguf_files.BLOCK_32))
    name = 'blk.0.ffn_up.weight'
    weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    packed = gguf_files.gguf.quants.quantize(weight, gguf_files.Type.Q8_0)
    packed[3, :2] = np.array([np.nan], np.float16).view(np.uint8)
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        tensors={name: packed},
        types={name: gguf_files.Type.Q8_0},
    )
    base = base_model.open_base_model(str(path))
    _refused(
        lambda: loading.load_decoder(base.reader, base.config, dtype=jnp.float32),
        'model.layers.0.mlp.up_proj.weight',
        str(path),
    )


def _own_head(tensors):
    tensors[_HEAD] = torch.randn(97, 24, generator=torch.Generator().manual_seed(3))


def _same_head(tensors):
    tensors[_HEAD] = tensors[_EMBEDDING].clone()


@pytest.mark.parametrize(('change', 'tied'), [(_own_head, False), (_same_head, True)])
@pytest.mark.parametrize('family', ['llama-tied', 'qwen3-tied'])
def test_a_stored_head_beside_a_tied_config(copied, tmp_path, family, change, tied):
    path = copied(family, change)
    hf = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        want = hf(torch.tensor(_TOKENS)).logits.numpy()
    base = base_model.open_base_model(str(path))
    assert base.config.tie_embeddings == tied
    got = verify.masked_logits(base, masks_lib.DENSE, _TOKENS, dtype='float32')
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)

    mask = np.zeros((3, 52), bool)
    mask[:, :20] = True
    hf_export.export_pruned(
        base,
        mask,
        tmp_path / 'out',
        dtype='float32',
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer()),
        model_card='',
        system_prompt='',
    )
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['tie_word_embeddings'] == tied
    want = verify.masked_logits(base, masks_lib.Masks(mask), _TOKENS, dtype='float32')
    for loader in verify._LOADERS.values():
        got = loader(str(tmp_path / 'out'), _TOKENS)
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_a_head_that_differs_in_its_last_row(copied):
    def change(tensors):
        _same_head(tensors)
        tensors[_HEAD][-1, -1] += 1e-3

    base = base_model.open_base_model(str(copied('llama-tied', change)))
    assert not base.config.tie_embeddings


def _sharded(tiny: Any, folder: pathlib.Path) -> list[pathlib.Path]:
    tiny.hf.save_pretrained(folder, max_shard_size='20KB')
    shards = sorted(folder.glob('model-*.safetensors'))
    assert len(shards) > 1
    return shards


def _embedding(path: pathlib.Path) -> np.ndarray:
    return base_model.open_base_model(str(path)).reader.read(_EMBEDDING)


def test_of_a_single_file_and_an_index_transformers_choice_is_ours(
    tiny_models, tmp_path
):
    tiny = tiny_models('llama')
    shards = _sharded(tiny, tmp_path)
    tensors = safetensors_torch.load_file(tiny.path / _SINGLE)
    sharded = tensors[_EMBEDDING].numpy().copy()
    np.testing.assert_array_equal(_embedding(tmp_path), sharded)

    tensors[_EMBEDDING] = tensors[_EMBEDDING] + 1
    safetensors_torch.save_file(tensors, tmp_path / _SINGLE, metadata={'format': 'pt'})
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    want = hf.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(want, tensors[_EMBEDDING].numpy())
    np.testing.assert_array_equal(_embedding(tmp_path), want)

    # The index is stale: its shards are gone, or it is none.
    shards[0].unlink()
    np.testing.assert_array_equal(_embedding(tmp_path), want)
    (tmp_path / 'model.safetensors.index.json').write_text('[')
    np.testing.assert_array_equal(_embedding(tmp_path), want)


def test_a_single_file_that_is_no_model_does_not_hide_the_shards(tiny_models, tmp_path):
    tiny = tiny_models('llama')
    shards = _sharded(tiny, tmp_path)
    safetensors_numpy.save_file(
        {'model.norm.weight': np.ones(24, np.float32)}, tmp_path / _SINGLE
    )
    want = tiny.hf.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(_embedding(tmp_path), want)
    shards[0].unlink()
    _refused(lambda: base_model.open_base_model(str(tmp_path)), 'incomplete')
    (tmp_path / _SINGLE).unlink()
    _refused(lambda: base_model.open_base_model(str(tmp_path)), shards[0].name, 'again')


def test_a_million_layers_are_refused_at_once(copied, tmp_path):
    began = time.monotonic()
    path = copied('llama', num_hidden_layers=10**6)
    _refused(lambda: base_model.open_base_model(str(path)), '1000000', str(path))
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    path = gguf_files.write_model(
        tmp_path / 'm.gguf', 'llama', model, metadata={'llama.block_count': 2**30}
    )
    _refused(lambda: base_model.open_base_model(str(path)), str(2**30), str(path))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    'key',
    [
        *('vocab_size', 'hidden_size', 'intermediate_size', 'head_dim'),
        *('num_hidden_layers', 'num_attention_heads', 'num_key_value_heads'),
        'max_position_embeddings',
    ],
)
@pytest.mark.parametrize('value', ['abc', -1, 0, 1.5, True, [3], 10**30, {}])
def test_config_numbers_that_are_none(copied, key, value):
    path = copied('llama', **{key: value})
    _refused(lambda: base_model.open_base_model(str(path)), key)


@pytest.mark.parametrize('value', ['abc', -1, 0, 10**400, True, [1.0]])
def test_config_reals_that_are_none(copied, value):
    path = copied('llama', rms_norm_eps=value)
    _refused(lambda: base_model.open_base_model(str(path)), 'rms_norm_eps')


def test_a_missing_head_says_what_it_may_be(copied):
    path = copied('llama', lambda tensors: tensors.pop(_HEAD))
    _refused(
        lambda: base_model.open_base_model(str(path)), _HEAD, 'tie_word_embeddings'
    )


def test_weights_in_eight_bits_are_named_as_such(copied):
    name = 'model.layers.0.mlp.up_proj.weight'

    def change(tensors):
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    path = copied('llama', change)
    _refused(lambda: base_model.open_base_model(str(path)), name, 'F8_E4M3', 'GGUF')


def test_a_quantised_config_is_named_as_such(copied):
    settings = {'quant_method': 'fp8', 'modules_to_not_convert': ['x' * 9] * 999}
    path = copied('llama', quantization_config=settings)
    _refused(lambda: base_model.open_base_model(str(path)), "'fp8'", 'original', 'GGUF')


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / 'adapter_config.json').write_text(
        '{"base_model_name_or_path": "some/base"}'
    )
    (tmp_path / 'adapter_model.safetensors').write_bytes(b'')
    _refused(
        lambda: base_model.open_base_model(str(tmp_path)),
        'adapter of',
        'some/base',
        'merge',
    )


def test_an_upper_case_gguf(tmp_path):
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    path = gguf_files.write_model(tmp_path / 'MODEL.GGUF', 'llama', model)
    assert base_model.open_base_model(str(path)).config.family == 'llama'
    other = path.rename(tmp_path / 'model.bin')
    _refused(lambda: base_model.open_base_model(str(other)), 'no .gguf')


@pytest.mark.parametrize(('key', 'want'), [('eot', [5, 9]), ('eom', [5, 9])])
def test_ends_of_turns_that_a_gguf_names(tmp_path, key, want):
    model = gguf_files.model_of(gguf_files.config_of('llama'))
    path = gguf_files.write_model(
        tmp_path / 'm.gguf',
        'llama',
        model,
        metadata={f'tokenizer.ggml.{key}_token_id': 5},
    )
    base = base_model.open_base_model(str(path))
    assert base.generation_config()['eos_token_id'] == want

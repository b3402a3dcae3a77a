"""What is removed unevenly stays removed, whatever recovery trains."""

import json
import pathlib
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from ppjax import demo
from ppjax.baselines import biases
from ppjax.comparing import sizes
from ppjax.evaluation import config as evaluation_config
from ppjax.evaluation import pipeline
from ppjax.exporting import hf_export
from ppjax.masking import pmask
from ppjax.models import base_model, costs, loading, structure
from ppjax.recovery import config, loop

# Of two blocks: what the first keeps fills the checkpoint, the second is narrower.
_SIZES = [costs.BlockSize(30, 2), costs.BlockSize(17, 1)]


@pytest.fixture(scope='module')
def uneven(
    chatty_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """What a rival leaves that prunes blocks unevenly, with biases as FLAP's."""
    base = base_model.open_base_model(str(chatty_model))
    kept = structure.Structure.dense(base.config)
    rng = np.random.default_rng(3)
    for layer, size in enumerate(_SIZES):
        kept.channels[layer, rng.permutation(40)[size.channels :]] = False
    kept.groups[1, 0] = False
    means = {
        name: rng.normal(size=(2, 24)).astype(np.float32) for name in ('b_down', 'b_o')
    }
    model = biases.with_biases(kept.pruned(base), means, kept.layers)
    folder = tmp_path_factory.mktemp('uneven') / 'hf'
    hf_export.export_model(
        model,
        folder,
        dtype='float32',
        tokenizer=base.tokenizer(),
        model_card='# Uneven\n',
        system_prompt='',
    )
    return folder


def _recover(calibration: Any, output: pathlib.Path, **changes: Any) -> pathlib.Path:
    cfg = config.RecoverConfig(
        **{
            'calibration': str(calibration),
            'output_dir': str(output),
            'batch_size': 4,
            'micro_batches': 1,
            'steps': 3,
            'mesh': 'data:2,fsdp:4',
            # So that what comes back comes back far.
            'learning_rate': 3e-2,
        }
        | changes
    ).resolved()
    rows = demo.read_rows(str(calibration), split='train')
    found = loop.recover(cfg, rows, [])
    assert found is not None
    return found


def _padded(model: base_model.BaseModel) -> list[np.ndarray]:
    """All that lies beyond what the second block keeps, in every weight and bias."""
    read = {
        name: model.reader.read(weight.hf_name.format(1))
        for name, weight in loading.BLOCK_WEIGHTS.items()
        if weight.hf_name.format(1) in model.reader.names()
    }
    found = [read[name][17:] for name in ('w_gate', 'w_up', 'b_gate', 'b_up')]
    found += [read[name][8:] for name in ('w_k', 'w_v', 'b_k', 'b_v')]
    found += [read[name][16:] for name in ('w_q', 'b_q')]
    return [*found, read['w_down'][:, 17:], read['w_o'][:, 16:]]


def _load(path: pathlib.Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _logits(model: Any) -> np.ndarray:
    tokens = torch.tensor(np.random.default_rng(1).integers(3, 999, (2, 19)))
    with torch.inference_mode():
        return model.eval()(tokens).logits.numpy()


@pytest.mark.parametrize(
    'method', [{}, {'lora_rank': 3}, {'gains': True}], ids=['full', 'lora', 'gains']
)
def test_what_fills_up_stays_zero(
    uneven: pathlib.Path,
    method: dict[str, Any],
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    before = base_model.open_base_model(str(uneven))
    assert structure.of_weights(before).sizes == _SIZES
    folder = _recover(
        calibration_files[0], tmp_path / 'run', model=str(uneven), **method
    )
    after = base_model.open_base_model(str(folder))
    assert all(x.size and not x.any() for x in _padded(after))
    name = loading.BLOCK_WEIGHTS['w_down'].hf_name.format(1)
    moved = np.abs(after.reader.read(name) - before.reader.read(name))
    assert moved[:, :17].max() > 1e-3
    # As many parameters as before, and it says so.
    assert structure.of_weights(after).sizes == _SIZES
    found = json.loads((tmp_path / 'run' / 'results' / 'recovery.json').read_text())
    wanted = costs.parameters(before.config, _SIZES)
    assert found['parameters'] == wanted._asdict()
    assert found['blocks'][1] == {'block': 1, 'channels': 17, 'groups': 1}
    assert f'beside {wanted.unique:,} parameters' in (folder / 'README.md').read_text()
    if 'lora_rank' in method:
        _adapters_alone_keep_it_removed(uneven, tmp_path / 'run')


def _adapters_alone_keep_it_removed(start: pathlib.Path, run: pathlib.Path) -> None:
    adapted = peft.PeftModel.from_pretrained(_load(start), run / 'adapter')
    np.testing.assert_allclose(_logits(adapted), _logits(_load(run / 'hf')), atol=1e-4)
    merged = adapted.merge_and_unload().model.layers[1]
    assert not merged.mlp.down_proj.weight[:, 17:].any()
    assert not merged.self_attn.o_proj.weight[:, 16:].any()
    assert not merged.self_attn.v_proj.weight[8:].any()


def test_channels_beyond_a_masks_own_widths_stay_out(
    chatty_model: pathlib.Path,
    calibration_files: Any,
    tmp_path: pathlib.Path,
) -> None:
    """Narrower layers of a mask get channels back that a gain of 0 takes out again."""
    base = base_model.open_base_model(str(chatty_model))
    kept = np.zeros((2, 40), bool)
    kept[0, :30] = kept[1, 5:22] = True
    mask = pmask.PersonaMask.of_widths(
        kept,
        base_model=str(chatty_model),
        base_fingerprint=base.fingerprint(),
        persona_sha256='0' * 64,
    )
    pmask.save(tmp_path / 'mask.pmask', mask)
    folder = _recover(
        calibration_files[0],
        tmp_path / 'run',
        base_model=str(chatty_model),
        mask=str(tmp_path / 'mask.pmask'),
    )
    after = base_model.open_base_model(str(folder))
    found = structure.of_weights(after)
    assert [size.channels for size in found.sizes] == [30, 17]


def test_what_is_filled_up_is_not_counted(uneven, chatty_model, tmp_path):
    base = base_model.open_base_model(str(uneven))
    wanted = costs.parameters(base.config, _SIZES)
    assert (
        wanted.blocks < costs.parameters(base.config, costs.uniform(base.config)).blocks
    )
    assert sizes.measure(uneven)['parameters'] == wanted._asdict()
    cfg = evaluation_config.EvaluateConfig(
        base_model=str(chatty_model),
        model=str(uneven),
        tasks='efficiency',
        timing=False,
        output_dir=str(tmp_path),
        prompt_length=8,
    )
    [(_, found)] = pipeline.Evaluation(cfg).run()
    pruned = found['closed_form']['pruned']
    assert pruned['parameters_blocks'] == wanted.blocks
    assert pruned['prefill_flops'] == costs.prefill_flops(base.config, _SIZES, 8)

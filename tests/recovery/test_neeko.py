"""Neeko: whose block a step changes, what the gate picks, files, PEFT, resuming."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from ppjax import demo
from ppjax.base import errors
from ppjax.data import calibration, chat
from ppjax.exporting import config as export_config
from ppjax.models import base_model, text_states
from ppjax.recovery import config, loop
from ppjax.recovery.neeko import blocks as blocks_lib
from ppjax.recovery.neeko import export as neeko_export
from ppjax.recovery.neeko import gate

_NAMES = ('ferryman', 'clockmaker')
_RANK, _ALPHA, _STEPS = 2, 6, 12


def _rows(name: str, split: str, count: int) -> list[calibration.Row]:
    return demo.rows(name, split)[:count]


def _prompt(name: str) -> str:
    return demo.rows(name, 'train')[0].system_prompt


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """NAME and NAME.test of both personas, few rows each."""
    folder = tmp_path_factory.mktemp('rows')
    found = {}
    for name in _NAMES:
        for key, split, count in ((name, 'train', 8), (f'{name}.test', 'test', 3)):
            found[key] = folder / f'{key}.jsonl'
            lines = [
                json.dumps({'messages': [*row.messages], 'query_id': row.query_id})
                for row in _rows(name, split, count)
            ]
            found[key].write_text('\n'.join(lines) + '\n')
    return found


def _settings(output: pathlib.Path, **changes: Any) -> config.RecoverConfig:
    values = {
        'output_dir': str(output),
        'neeko': True,
        'lora_rank': _RANK,
        'lora_alpha': _ALPHA,
        'lora_targets': 'q_proj,down_proj',
        'batch_size': 4,
        'micro_batches': 1,
        'steps': 6,
        'checkpoint_every': 2,
        'learning_rate': 2e-2,
        # Eight devices for four examples would compile for long.
        'mesh': 'data:2,fsdp:4',
        'max_length': 512,
    }
    return config.RecoverConfig(**(values | changes))


def _of_both(
    output: pathlib.Path, model: pathlib.Path, files: dict[str, pathlib.Path]
) -> config.RecoverConfig:
    return _settings(
        output,
        base_model=str(model),
        calibration=','.join(str(files[name]) for name in _NAMES),
        heldout=','.join(str(files[f'{name}.test']) for name in _NAMES),
        steps=_STEPS,
    )


def _recover(cfg: config.RecoverConfig) -> pathlib.Path | None:
    held = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    return loop.recover(
        cfg.resolved(), demo.read_rows(str(cfg.calibration), split='train'), held
    )


@pytest.fixture(scope='module')
def together(
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """A finished run of two personas on the dense model."""
    run = tmp_path_factory.mktemp('runs') / 'together'
    cfg = _of_both(run, chatty_model, files)
    assert _recover(cfg) == run / blocks_lib.FILE
    return run


def _logits(model: Any) -> np.ndarray:
    tokens = torch.tensor(np.random.default_rng(1).integers(3, 999, (2, 19)))
    with torch.inference_mode():
        return model.eval()(tokens).logits.numpy()


def _load(path: pathlib.Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _export(run: pathlib.Path, output: pathlib.Path, **changes: Any) -> pathlib.Path:
    values = {'neeko': str(run / blocks_lib.FILE), 'output_dir': str(output)}
    return neeko_export.export(export_config.ExportConfig(**(values | changes)))


def test_one_persona_alone_is_lora(
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    given = {
        'base_model': str(chatty_model),
        'calibration': str(files['ferryman']),
        'steps': 3,
    }
    _recover(_settings(tmp_path / 'lora', **given, neeko=False))
    _recover(_settings(tmp_path / 'neeko', **given))
    digest = chat.persona_digest(_prompt('ferryman'))
    ours, theirs = (
        (folder / 'adapter_model.safetensors').read_bytes()
        for folder in (
            tmp_path / 'neeko' / 'adapters' / digest,
            tmp_path / 'lora' / 'adapter',
        )
    )
    assert ours == theirs
    assert not (tmp_path / 'neeko' / 'hf').exists()
    # And so is the model that the gate then gives.
    hf = _export(tmp_path / 'neeko', tmp_path / 'hf', persona='demo:ferryman')
    ours, theirs = (
        (folder / 'model.safetensors').read_bytes()
        for folder in (hf, tmp_path / 'lora' / 'hf')
    )
    assert ours == theirs


def test_a_step_changes_one_block_and_nothing_of_another(
    together: pathlib.Path,
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    """The other persona's rows may be any: a block is the same bits."""
    other = tmp_path / 'other.jsonl'
    lines = [json.loads(line) for line in files['clockmaker'].open()]
    for line in lines:
        # As many tokens, so that steps are of the same shape.
        answer = line['messages'][-1]['content']
        line['messages'][-1]['content'] = answer.replace(' the ', ' a ')
    other.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    cfg = _settings(
        tmp_path / 'run',
        base_model=str(chatty_model),
        calibration=f'{files["ferryman"]},{other}',
        steps=_STEPS,
    )
    _recover(cfg)
    before = blocks_lib.load(together / blocks_lib.FILE)
    after = blocks_lib.load(tmp_path / 'run' / blocks_lib.FILE)
    assert before.prompts == after.prompts == tuple(map(_prompt, _NAMES))
    for name, pair in before.block(0).items():
        for side, value in pair.items():
            np.testing.assert_array_equal(value, after.block(0)[name][side])
            assert not np.array_equal(
                before.block(1)[name][side], after.block(1)[name][side]
            )
    for number in (0, 1):
        assert np.abs(before.block(number)['w_down']['b']).max() > 1e-3


def test_figures_are_of_every_persona_with_its_own_block(
    together: pathlib.Path, chatty_model: pathlib.Path, files: dict[str, pathlib.Path]
) -> None:
    found = json.loads((together / 'results' / 'recovery.json').read_text())
    assert (found['method'], set(found['models'])) == ('neeko', {'start', 'recovered'})
    # Two blocks, 2 layers, rank 2: q 24 -> 32, down 40 -> 24.
    assert found['trained_parameters'] == 2 * 2 * _RANK * (24 + 32 + 40 + 24)
    assert [x['conversations'] for x in found['personas']] == [8, 8]
    assert sum(x['steps'] for x in found['personas']) == _STEPS
    for entry in found['personas']:
        assert entry['steps'] > 0
        assert entry['nll']['recovered'] < entry['nll']['start']
    cosines = np.array(found['cosines'])
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert cosines[0, 1] < 1
    logged = [json.loads(line) for line in (together / 'metrics.jsonl').open()]
    [last] = [x['heldout_nll'] for x in logged if 'heldout_nll' in x][-1:]
    assert last == pytest.approx(found['models']['recovered']['nll'], rel=1e-6)


@pytest.mark.parametrize('number', [0, 1])
def test_the_model_that_the_gate_gives_is_the_adapter_in_peft(
    together: pathlib.Path,
    chatty_model: pathlib.Path,
    tmp_path: pathlib.Path,
    number: int,
) -> None:
    name = _NAMES[number]
    hf = _export(together, tmp_path / 'hf', persona=f'demo:{name}', verify=not number)
    merged = _logits(_load(hf))
    digest = chat.persona_digest(_prompt(name))
    adapted = {
        other: peft.PeftModel.from_pretrained(
            _load(chatty_model), together / 'adapters' / other
        )
        for other in blocks_lib.load(together / blocks_lib.FILE).digests
    }
    np.testing.assert_allclose(_logits(adapted.pop(digest)), merged, atol=1e-4, rtol=0)
    [other] = adapted.values()
    assert np.abs(_logits(other) - merged).max() > 1e-2
    persona = json.loads((hf / 'persona.json').read_text())
    assert persona == {'system_prompt': _prompt(name)}
    card = (hf / 'README.md').read_text()
    assert 'finetuned on 8 conversations of `neeko.safetensors`' in card
    # Named by its digest it is the same, and there already.
    before = (hf / 'model.safetensors').stat().st_mtime_ns
    again = _export(together, tmp_path / 'hf', persona=digest)
    assert (again / 'model.safetensors').stat().st_mtime_ns == before


def test_a_persona_without_a_block_gets_the_nearest_or_a_mixture(
    together: pathlib.Path, chatty_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    blocks = blocks_lib.load(together / blocks_lib.FILE)
    text = 'A diver who mends nets by night and trusts nobody ashore.'
    base = base_model.open_base_model(str(chatty_model))
    [vector] = text_states.mean_states(base, [text], dtype='float32')
    unit = [x / np.linalg.norm(x) for x in (vector, *blocks.gate.astype(np.float64))]
    cosines = [float(unit[0] @ x) for x in unit[1:]]
    near = int(np.argmax(cosines))
    hf = _export(together, tmp_path / 'near', persona=text)
    wanted = _export(together, tmp_path / 'own', persona=blocks.digests[near])
    assert (hf / 'model.safetensors').read_bytes() == (
        wanted / 'model.safetensors'
    ).read_bytes()
    assert text in json.loads((hf / 'persona.json').read_text())['system_prompt']
    mixed = _export(
        together,
        tmp_path / 'mixed',
        persona=text,
        gate='mixture',
        gate_temperature=0.5,
    )
    shares = np.exp(np.array(cosines) / 0.5)
    shares /= shares.sum()
    assert 0.1 < shares[0] < 0.9
    key = 'model.layers.1.mlp.down_proj.weight'
    delta = sum(
        share * blocks.scale * pair['a'][1] @ pair['b'][1]
        for share, pair in (
            (share, blocks.block(i)['w_down']) for i, share in enumerate(shares)
        )
    )
    before = _load(chatty_model).state_dict()[key].numpy()
    after = _load(mixed).state_dict()[key].numpy()
    np.testing.assert_allclose(after, before + delta.T, atol=1e-5)
    with pytest.raises(errors.InputError, match='differing in gate'):
        _export(together, tmp_path / 'mixed', persona=text)


def test_new_personas_are_added_to_blocks_that_stay(
    together: pathlib.Path,
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    first = tmp_path / 'first'
    common = {'base_model': str(chatty_model), 'steps': 2}
    _recover(_settings(first, calibration=str(files['ferryman']), **common))
    cfg = _settings(
        tmp_path / 'more',
        calibration=str(files['clockmaker']),
        heldout=','.join(str(files[f'{name}.test']) for name in _NAMES),
        neeko_start=str(first / blocks_lib.FILE),
        **common,
    )
    _recover(cfg)
    old = blocks_lib.load(first / blocks_lib.FILE)
    new = blocks_lib.load(tmp_path / 'more' / blocks_lib.FILE)
    assert new.prompts == tuple(map(_prompt, _NAMES))
    for name, pair in old.block(0).items():
        for side, value in pair.items():
            np.testing.assert_array_equal(value, new.block(0)[name][side])
    # Another file in its place is noticed; so is the damage of one's own.
    blocks_lib.save(first / blocks_lib.FILE, dataclasses.replace(old, settings='x'))
    with pytest.raises(errors.InputError, match='the content of neeko start'):
        _recover(cfg)
    made = first / blocks_lib.FILE
    with pytest.raises(errors.InputError, match='is not as it was written'):
        _recover(_settings(first, calibration=str(files['ferryman']), **common))
    assert made.exists()
    # The known persona is measured with the block that it had.
    found = json.loads((tmp_path / 'more' / 'results' / 'recovery.json').read_text())
    assert [x['steps'] for x in found['personas']] == [0, 2]
    for entry in found['personas']:
        assert entry['nll']['recovered'] != entry['nll']['start']
    for changes, message in (
        ({'calibration': str(files['ferryman'])}, 'has a block in --neeko_start'),
        ({'lora_rank': 3}, 'are of --lora_rank=2 --lora_alpha=6'),
    ):
        with pytest.raises(errors.InputError, match=message):
            _recover(
                dataclasses.replace(cfg, output_dir=str(tmp_path / 'no'), **changes)
            )
        assert not (tmp_path / 'no').exists()


def test_blocks_go_beside_a_pruned_model_alone(
    together: pathlib.Path,
    pruned: Any,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    chatty_model: pathlib.Path,
) -> None:
    with pytest.raises(errors.InputError, match=r'of 40 x 24, .* of 24 x 24'):
        _export(
            together, tmp_path / 'hf', persona='demo:ferryman', model=str(pruned[1])
        )
    run = tmp_path / 'run'
    _recover(
        _settings(
            run,
            base_model=str(chatty_model),
            mask=str(pruned[0]),
            calibration=str(files['ferryman']),
            steps=1,
        )
    )
    of_mask = _export(
        run,
        tmp_path / 'a',
        persona='demo:ferryman',
        base_model=str(chatty_model),
        mask=str(pruned[0]),
    )
    of_model = _export(
        run, tmp_path / 'b', persona='demo:ferryman', model=str(pruned[1])
    )
    assert _load(of_mask).config.intermediate_size == 24
    np.testing.assert_array_equal(_logits(_load(of_mask)), _logits(_load(of_model)))


def test_a_damaged_file_is_refused(
    together: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / 'neeko.safetensors'
    blocks = blocks_lib.load(together / blocks_lib.FILE)
    blocks_lib.save(path, blocks)
    assert path.read_bytes() == (together / blocks_lib.FILE).read_bytes()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.InputError, match='no readable file of blocks'):
        blocks_lib.load(path)
    for changes, message in (
        ({'prompts': blocks.prompts[:1] * 2}, 'two of them are the same'),
        ({'gate': blocks.gate * 0}, 'of zeros'),
        ({'gate': blocks.gate.astype(np.float64)}, 'must be float32'),
        ({'conversations': (1,)}, 'must be 2 numbers'),
        (
            {'adapters': {'w_q': blocks.adapters['w_down'] | {'a': blocks.gate}}},
            'q_proj',
        ),
    ):
        with pytest.raises((ValueError, IndexError), match=message):
            dataclasses.replace(blocks, **changes)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lora_rank': 0}, '--neeko needs --lora_rank'),
        ({'verify': True}, '--neeko exports no model, so --verify'),
        ({'neeko': False, 'neeko_start': 'f'}, '--neeko_start is of --neeko'),
        ({'gains': True}, 'two ways to recover'),
    ],
)
def test_contradictory_flags(changes: dict[str, Any], message: str) -> None:
    values = {'model': 'a', 'calibration': 'c'} | changes
    with pytest.raises(errors.InputError, match=message):
        _settings(pathlib.Path('o'), **values)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'persona': None}, '--persona must be given'),
        ({'gguf': 'f16'}, '--gguf has no meaning beside it'),
        ({'model': 'a', 'base_model': 'b'}, 'give one'),
        ({'mask': 'm'}, '--mask needs --base_model'),
        ({'neeko': None, 'gate': 'mixture'}, '--gate_temperature are of --neeko'),
    ],
)
def test_contradictory_flags_of_export(changes: dict[str, Any], message: str) -> None:
    values = {'neeko': 'f', 'persona': 'p', 'output_dir': 'o'} | changes
    with pytest.raises(errors.InputError, match=message):
        export_config.ExportConfig(**values)


def test_rows_that_no_block_can_learn_from_leave_no_folder(
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    plain = tmp_path / 'plain.jsonl'
    lines = [json.loads(line) for line in files['clockmaker'].open()]
    plain.write_text(
        ''.join(json.dumps({'messages': x['messages'][1:]}) + '\n' for x in lines)
    )
    common = {'base_model': str(chatty_model)}
    for changes, message in (
        ({'calibration': f'{files["ferryman"]},{plain}'}, r'plain\.jsonl:1: .* none'),
        (
            {'calibration': str(files['ferryman']), 'batch_size': 9},
            'has 8 rows, fewer than --batch_size=9',
        ),
        (
            {
                'calibration': str(files['ferryman']),
                'heldout': str(plain),
            },
            r'plain\.jsonl:1: this held-out row',
        ),
    ):
        with pytest.raises(errors.InputError, match=message):
            _recover(_settings(tmp_path / 'run', **common, **changes))
        assert not (tmp_path / 'run').exists()


def _steps_done(run: pathlib.Path) -> int:
    path = run / 'metrics.jsonl'
    return path.read_text().count('\n') if path.exists() else 0


def test_kill_9_gives_the_same_bits(
    together: pathlib.Path,
    chatty_model: pathlib.Path,
    files: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    run = tmp_path / 'run'
    cfg = _of_both(run, chatty_model, files)
    command = [sys.executable, '-m', 'ppjax.recover', '--checkpoint_every=1']
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if value != field.default and field.name != 'checkpoint_every':
            command.append(f'--{field.name}={value}')
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env=os.environ | {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'},
    )
    deadline = time.monotonic() + 300
    while _steps_done(run) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= _steps_done(run) < _STEPS
    _recover(cfg)
    ours, theirs = ((x / blocks_lib.FILE).read_bytes() for x in (run, together))
    assert ours == theirs
    before = (run / blocks_lib.FILE).stat().st_mtime_ns
    _recover(cfg)
    assert (run / blocks_lib.FILE).stat().st_mtime_ns == before


def test_the_gate() -> None:
    vectors = np.array([[3.0, 0.0], [2.0, 2.0], [0.0, -1.0]])
    found = gate.choose(vectors, np.array([1.0, 0.9]))
    assert (found.block, found.shares.tolist()) == (1, [0, 1, 0])
    mixed = gate.choose(vectors, np.array([1.0, 0.0]), gate='mixture', temperature=0.5)
    weights = np.exp(np.array([1, 0.5**0.5, 0]) / 0.5)
    np.testing.assert_allclose(mixed.shares, weights / weights.sum())
    assert gate.text_of(_prompt('ferryman')) == demo.persona('ferryman').strip()
    with pytest.raises(errors.InputError, match='without a description'):
        gate.text_of('  ')
    # Equal cosines: the first, on every device.
    assert gate.choose(vectors[[0, 0]], vectors[0]).block == 0

"""The chat verb, on a random model with SmolLM2's tokenizer."""

import dataclasses
import io
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppjax import chat
from ppjax.base import errors
from ppjax.chatting import config as chat_config
from ppjax.chatting import terminal
from ppjax.masking import apply, pmask
from ppjax.models import generation
from ppjax.models import masks as masks_lib
from ppjax.personas import prompts

_ROOT = pathlib.Path(chat.__file__).parents[1]
_PERSONA = 'A lighthouse keeper who counts ships.'


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Verbs turn the compilation cache on; here never in the home directory."""
    names = (
        'jax_compilation_cache_dir',
        'jax_persistent_cache_min_compile_time_secs',
    )
    before = {name: getattr(jax.config, name) for name in names}
    folder = tmp_path_factory.getbasetemp() / 'jax'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(folder))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _expected(loaded, system, turns, new, mask=None, **sampling):
    """The answer to the last of `turns`, without any of chat's own code."""
    messages = [{'role': 'system', 'content': system}] if system else []
    messages += [
        {'role': ('user', 'assistant')[i % 2], 'content': text}
        for i, text in enumerate(turns)
    ]
    text = loaded.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    (answer,) = generation.generate(
        loaded.decoder,
        masks_lib.Masks(mask),
        [loaded.tokenizer.encode(text, add_special_tokens=False)],
        max_new_tokens=new,
        stop_ids={2},
        **sampling,
    )
    assert 2 not in answer
    return loaded.tokenizer.decode(answer, skip_special_tokens=True)


def _run(*arguments, stdin=None):
    return subprocess.run(
        [sys.executable, '-m', 'ppjax.chat', *arguments],
        cwd=_ROOT,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        encoding='utf-8',
        check=False,
    )


def _main(capsys, monkeypatch, *lines, **settings):
    """Runs the verb in this process -> (exit code, stdout, stderr)."""
    stdin = io.StringIO(''.join(f'{line}\n' for line in lines))
    monkeypatch.setattr(sys, 'stdin', stdin)
    code = chat.main(chat_config.ChatConfig(**settings))
    return code, *capsys.readouterr()


# The verb, as a person starts it.


def test_one_shot(model_dir, loaded):
    done = _run(
        f'--model={model_dir}', '--prompt=Ahoy?', '--max_new_tokens=12', '--stats'
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == _expected(loaded, 'Be brief.', ['Ahoy?'], 12) + '\n'
    assert 'Loading' in done.stderr and 'with a persona prompt' in done.stderr
    assert 'cut at --max_new_tokens=12' in done.stderr
    stats = done.stderr.splitlines()[-1]
    assert stats.startswith('[prefill ') and '12 tokens at ' in stats


def test_errors_are_one_line_and_have_their_exit_codes(model_dir):
    wrong = _run(f'--model={model_dir}', '--mask=a.pmask')
    assert (wrong.returncode, wrong.stdout) == (2, '')
    assert wrong.stderr.startswith('ERROR: --model and --mask exclude each other')
    assert 'python -m ppjax.chat --help' in wrong.stderr
    absent = _run('--mask=no/such.pmask', '--prompt=Ahoy?')
    assert (absent.returncode, absent.stdout) == (1, '')
    assert absent.stderr.splitlines()[-1] == (
        'ERROR: Mask file no/such.pmask does not exist.'
    )
    assert 'Traceback' not in absent.stderr


def _read_until(stream, wanted):
    seen = b''
    while wanted not in seen:
        byte = os.read(stream.fileno(), 1)
        assert byte, f'{wanted!r} did not come after {seen!r}'
        seen += byte
    return seen


def test_on_a_terminal_ctrl_c_interrupts_and_ctrl_d_leaves(model_dir):
    terminal, child_end = pty.openpty()
    # What a shell starts in the background ignores Ctrl-C, and so would the test.
    program = (
        'import runpy, signal\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        "runpy.run_module('ppjax.chat', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            program,
            f'--model={model_dir}',
            '--max_new_tokens=3900',
        ],
        cwd=_ROOT,
        stdin=child_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Reads below would wait for ever.
    deadline = threading.Timer(240, process.kill)
    deadline.start()
    try:
        _read_until(process.stderr, b'> ')
        os.write(terminal, b'Ahoy?\n')
        assert os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _read_until(process.stderr, b'(interrupted)\n> ')
        os.write(terminal, b'\x04')
        out, err = process.communicate()
    finally:
        deadline.cancel()
        process.kill()
        os.close(terminal)
        os.close(child_end)
    assert process.returncode == 0, err
    assert b'> ' not in out


# The same in this process, where it is quick.


def test_lines_of_stdin_are_one_conversation(model_dir, loaded, capsys, monkeypatch):
    code, out, err = _main(
        capsys,
        monkeypatch,
        'Ahoy?',
        '',
        'And now? 🚢',
        '/reset',
        'Ahoy?',
        '/help',
        '/exit',
        'not asked',
        model=str(model_dir),
        max_new_tokens=7,
    )
    assert code == 0
    first = _expected(loaded, 'Be brief.', ['Ahoy?'], 7)
    second = _expected(loaded, 'Be brief.', ['Ahoy?', first, 'And now? 🚢'], 7)
    assert first != second
    assert out == f'{first}\n{second}\n{first}\n'
    assert '(The conversation was forgotten.)' in err and '/reset  forget' in err


def test_no_lines_no_answers(model_dir, capsys, monkeypatch):
    code, out, _ = _main(capsys, monkeypatch, model=str(model_dir))
    assert (code, out) == (0, '')


def test_persona_flag_overrides_as_text_and_as_file(
    model_dir, loaded, tmp_path, capsys, monkeypatch
):
    settings = {'model': str(model_dir), 'prompt': 'Ahoy?', 'max_new_tokens': 7}
    want = _expected(loaded, prompts.persona_prompt(_PERSONA), ['Ahoy?'], 7)
    assert want != _expected(loaded, 'Be brief.', ['Ahoy?'], 7)
    file = tmp_path / 'keeper'
    file.write_text(_PERSONA + '\n', encoding='utf-8')
    for persona in (_PERSONA, str(file)):
        _, out, _ = _main(capsys, monkeypatch, persona=persona, **settings)
        assert out == want + '\n'


@pytest.mark.parametrize('prompt', ['', 'Be loud.'])
def test_system_prompt_is_taken_as_it_is(
    model_dir, loaded, capsys, monkeypatch, prompt
):
    settings = {'model': str(model_dir), 'prompt': 'Ahoy?', 'max_new_tokens': 7}
    _, out, _ = _main(capsys, monkeypatch, system_prompt=prompt, **settings)
    assert out == _expected(loaded, prompt, ['Ahoy?'], 7) + '\n'
    with pytest.raises(errors.InputError, match='both say who is spoken to'):
        chat_config.ChatConfig(model='m', persona='A baker.', system_prompt=prompt)


def test_persona_flag_reads_cards(model_dir, loaded, tmp_path, capsys, monkeypatch):
    system = '{{char}} speaks with {{user}}.'
    card = {'name': 'Ida', 'description': 'She bakes.', 'system_prompt': system}
    file = tmp_path / 'ida.json'
    file.write_text(
        json.dumps({'spec': 'chara_card_v2', 'spec_version': '2.0', 'data': card})
    )
    want = _expected(loaded, 'Ida speaks with Bo.\n\nShe bakes.', ['Ahoy?'], 7)
    settings = {'model': str(model_dir), 'prompt': 'Ahoy?', 'max_new_tokens': 7}
    _, out, _ = _main(
        capsys, monkeypatch, persona=str(file), user_name='Bo', **settings
    )
    assert out == want + '\n'


def test_mask_brings_its_base_and_its_persona(
    model_dir, mask_file, loaded, capsys, monkeypatch
):
    mask = jnp.asarray(pmask.load(mask_file).mask)
    want = _expected(loaded, 'Count the ships.', ['Ahoy?'], 7, mask)
    assert want != _expected(loaded, 'Count the ships.', ['Ahoy?'], 7)
    settings = {'mask': str(mask_file), 'prompt': 'Ahoy?', 'max_new_tokens': 7}
    for base in (None, str(model_dir)):
        _, out, err = _main(capsys, monkeypatch, base_model=base, **settings)
        assert out == want + '\n'
        assert 'with a persona prompt' in err


def test_the_template_is_told_the_date_of_the_run_it_lies_in(tmp_path):
    settings = {'mask': str(tmp_path / 'mask.pmask'), 'model': str(tmp_path / 'hf')}
    for dated in (False, True):
        if dated:
            (tmp_path / 'config.flags').write_text('--date=2031-02-03\n')
        for name, path in settings.items():
            cfg = chat_config.ChatConfig(**{name: path})
            want = '2031-02-03' if dated else '2026-01-01'
            assert terminal._run_date(cfg) == want


def test_base_model_alone_is_dense_and_has_no_persona(
    model_dir, loaded, capsys, monkeypatch
):
    _, out, err = _main(
        capsys,
        monkeypatch,
        base_model=str(model_dir),
        prompt='Ahoy?',
        max_new_tokens=7,
    )
    assert out == _expected(loaded, '', ['Ahoy?'], 7) + '\n'
    assert 'without a persona prompt' in err


def test_sampling_flags_reach_the_sampler(model_dir, loaded, capsys, monkeypatch):
    _, out, _ = _main(
        capsys,
        monkeypatch,
        model=str(model_dir),
        prompt='Ahoy?',
        max_new_tokens=7,
        temperature=1.5,
        top_p=0.9,
        top_k=40,
        seed=11,
    )
    want = _expected(
        loaded,
        'Be brief.',
        ['Ahoy?'],
        7,
        sampling=generation.Sampling(1.5, 0.9, 40),
        seed=11,
    )
    assert out == want + '\n'


def test_on_a_terminal_errors_and_typos_do_not_end_it(
    model_dir, loaded, capsys, monkeypatch
):
    lines = iter(
        ['<|im_end|>', '/exti', '  ', KeyboardInterrupt(), '/help', 'Ahoy?', EOFError()]
    )

    def read():
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(terminal, '_read_line', read)
    cfg = chat_config.ChatConfig(model=str(model_dir), max_new_tokens=7)
    terminal._interactive(terminal.open_conversation(cfg), stats=False)
    out, err = capsys.readouterr()
    assert out == _expected(loaded, 'Be brief.', ['Ahoy?'], 7) + '\n'
    assert "ERROR: The conversation: the user turn contains '<|im_end|>'" in err
    assert '(/exti is no command; /help lists them.)' in err
    assert '(/exit or Ctrl-D leaves.)' in err


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        ({}, 'One of --model, --mask and --base_model'),
        ({'model': 'a', 'mask': 'b'}, '--model and --mask exclude'),
        ({'model': 'a', 'base_model': 'b'}, '--model and --base_model exclude'),
        ({'model': 'a', 'max_new_tokens': 0}, '--max_new_tokens'),
        ({'model': 'a', 'seed': -1}, '--seed'),
        ({'model': 'a', 'seed': 2**32}, '--seed'),
        ({'model': 'a', 'temperature': -1.0}, '--temperature'),
        ({'model': 'a', 'top_k': 5}, '--temperature=0'),
    ],
)
def test_contradictory_flags_are_refused(settings, text):
    with pytest.raises(errors.InputError, match=text):
        chat_config.ChatConfig(**settings)


def test_unusable_files_are_named(model_dir, mask_file, tmp_path, loaded):
    def refused(*parts, **settings):
        with pytest.raises(errors.InputError) as caught:
            terminal.open_conversation(chat_config.ChatConfig(**settings))
        message = str(caught.value)
        assert '\n' not in message
        assert all(part in message for part in parts), message

    model = str(model_dir)
    refused('--model=', 'no directory', model=str(tmp_path / 'none'))
    refused("no file 'keeper.txt'", model=model, persona='keeper.txt')
    latin = tmp_path / 'latin'
    latin.write_bytes('Zoë'.encode('latin-1'))
    refused('latin', 'not UTF-8', model=model, persona=str(latin))
    refused('surrogate', model=model, persona='\udcff lone')
    blank = tmp_path / 'blank'
    blank.write_text(' \n')
    refused('blank', 'is empty', model=model, persona=str(blank))
    refused('--date', 'YYYY-MM-DD', model=model, date='today')

    broken = tmp_path / 'broken'
    broken.mkdir()
    for file in model_dir.iterdir():
        (broken / file.name).symlink_to(file)
    (broken / 'persona.json').unlink()
    (broken / 'persona.json').write_text('{"system_prompt": 3}')
    refused('persona.json', 'system_prompt', model=str(broken))

    mask = pmask.load(mask_file)
    other = tmp_path / 'other.pmask'
    pmask.save(other, dataclasses.replace(mask, base_fingerprint='f' * 64))
    refused('fingerprint', mask=str(other))
    pmask.save(other, dataclasses.replace(mask, base_model='nobody/none'))
    refused('nobody/none', 'not on this machine', '--base_model', mask=str(other))
    pmask.save(other, dataclasses.replace(mask, base_model='/gone'))
    refused('/gone', 'not on this machine', mask=str(other))


@pytest.mark.parametrize('names', [(), ('model', 'mask_path'), ('model', 'base_model')])
def test_load_masked_wants_one_source(names):
    with pytest.raises(ValueError, match='either model or'):
        apply.load_masked(**dict.fromkeys(names, 'x'), dtype='float32')


def test_load_masked_gives_what_the_files_hold(mask_file, loaded):
    masked = apply.load_masked(mask_path=str(mask_file), dtype='bfloat16')
    assert masked.decoder.blocks.w_up.values[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(masked.masks.channels, pmask.load(mask_file).mask)
    assert masked.system_prompt == 'Count the ships.'
    assert loaded.masks == masks_lib.DENSE and loaded.system_prompt == 'Be brief.'
    assert loaded.decoder.blocks.w_up.values[...].dtype == jnp.float32

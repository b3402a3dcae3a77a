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

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models
import torch
import transformers

from ppjax import chat
from ppjax.base import compile_cache, errors
from ppjax.chatting import config as chat_config
from ppjax.chatting import conversation, terminal
from ppjax.masking import apply, pmask
from ppjax.models import generation
from ppjax.personas import prompts

_ROOT = pathlib.Path(chat.__file__).parents[1]
_PERSONA = 'A lighthouse keeper who counts ships.'


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory, smollm2_tokenizer) -> pathlib.Path:
    """A model that never stops by itself, with a persona like an exported one's."""
    path = tmp_path_factory.mktemp('model')
    smollm2_tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=24,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, mean=float('norm' in name), std=0.3)
    model.save_pretrained(path)
    (path / 'persona.json').write_text(json.dumps({'system_prompt': 'Be brief.'}))
    return path


@pytest.fixture(scope='module')
def loaded(model_dir) -> apply.LoadedModel:
    return apply.load_masked(model=str(model_dir), dtype='float32')


@pytest.fixture(scope='module')
def mask_file(tmp_path_factory, loaded, model_dir) -> pathlib.Path:
    order = np.random.default_rng(0).random((2, 52)).argsort(axis=1)
    path = tmp_path_factory.mktemp('mask') / 'keeper.pmask'
    mask = pmask.PersonaMask(
        mask=order < 31,
        base_model=str(model_dir),
        base_fingerprint=loaded.base.fingerprint(),
        persona_sha256='0' * 64,
        system_prompt='Count the ships.',
    )
    pmask.save(path, mask)
    return path


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
        mask,
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
        "ERROR: Mask file 'no/such.pmask' does not exist."
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
    refused("'keeper.txt' does not exist", model=model, persona='keeper.txt')
    latin = tmp_path / 'latin'
    latin.write_bytes('Zoë'.encode('latin-1'))
    refused('latin', 'not UTF-8', model=model, persona=str(latin))
    refused('not UTF-8', model=model, persona='\udcff lone')
    blank = tmp_path / 'blank'
    blank.write_text(' \n')
    refused('blank', 'empty file', model=model, persona=str(blank))
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
    assert masked.decoder.blocks.w_up[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(masked.ffn_mask, pmask.load(mask_file).mask)
    assert masked.system_prompt == 'Count the ships.'
    assert loaded.ffn_mask is None and loaded.system_prompt == 'Be brief.'
    assert loaded.decoder.blocks.w_up[...].dtype == jnp.float32


# A conversation's memory.


def _conversation(loaded, notices=None, max_position=4096, new=5, system='Be brief.'):
    cfg = dataclasses.replace(loaded.decoder.cfg, max_position=max_position)
    leaves, treedef = jax.tree.flatten(loaded.decoder)
    decoder = jax.tree.unflatten(treedef, leaves)
    decoder.cfg = cfg
    return conversation.Conversation(
        dataclasses.replace(loaded, decoder=decoder),
        system_prompt=system,
        date='2026-01-01',
        max_new_tokens=new,
        sampling=generation.GREEDY,
        seed=0,
        notify=([] if notices is None else notices).append,
    )


def test_oldest_turns_are_forgotten_when_the_positions_run_out(loaded):
    notices: list[str] = []
    conversation = _conversation(loaded, notices, max_position=144, new=20)
    questions = [f'Question number {i}?' for i in range(8)]
    for question in questions:
        answer = conversation.ask(question, lambda piece: None)
        # By the flag: there was room for a whole one every time.
        assert answer.cut == '--max_new_tokens=20'
    assert notices and 'forgotten' in notices[0] and '144 positions' in notices[0]
    system, *turns = conversation.messages
    assert system == {'role': 'system', 'content': 'Be brief.'}
    assert [turn['role'] for turn in turns] == ['user', 'assistant'] * (len(turns) // 2)
    kept = [turn['content'] for turn in turns[::2]]
    assert 1 < len(kept) < 8
    assert kept == questions[-len(kept) :]
    # No more than had to be: a turn takes about 36 tokens.
    assert 144 - 20 - 40 < answer.prompt_tokens <= 144 - 20


def test_a_question_that_cannot_fit_is_refused_and_not_remembered(loaded):
    conversation = _conversation(loaded, max_position=96)
    conversation.ask('Ahoy?', lambda piece: None)
    with pytest.raises(errors.InputError, match='96 positions'):
        conversation.ask('ships ' * 100, lambda piece: None)
    assert [m['role'] for m in conversation.messages] == ['system']


def test_an_answer_is_cut_where_the_positions_end(loaded):
    conversation = _conversation(loaded, max_position=64, new=1000, system='')
    answer = conversation.ask('Ahoy?', lambda piece: None)
    assert answer.cut == "the model's 64 positions"
    assert answer.prompt_tokens + len(answer.arrivals) == 64
    assert _conversation(loaded).ask('Ahoy?', lambda piece: None).cut == (
        '--max_new_tokens=5'
    )


def test_a_stop_token_is_not_shown_and_ends_the_answer(loaded, monkeypatch):
    ids = loaded.tokenizer.encode('x y')
    monkeypatch.setattr(
        generation, 'stream', lambda *_, **__: iter(np.array([[*ids, 2, 7]]).T)
    )
    pieces: list[str] = []
    conversation = _conversation(loaded, new=8)
    answer = conversation.ask('Ahoy?', pieces.append)
    assert ''.join(pieces) == answer.text == 'x y'
    assert answer.cut is None and len(answer.arrivals) == len(ids) + 1
    assert conversation.messages[-1] == {'role': 'assistant', 'content': 'x y'}


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_shown(loaded):
    conversation = _conversation(loaded, new=50)
    shown: list[str] = []

    def show(piece):
        shown.append(piece)
        if len(shown) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask('Ahoy?', show)
    assert conversation.messages[-1]['content'] == ''.join(shown)
    conversation.reset()
    assert [m['role'] for m in conversation.messages] == ['system']


def test_stats_leave_the_compiled_first_step_out():
    answer = conversation.Answer('', None, 7, (2.0, 5.0, 5.5, 6.0))
    assert answer.stats() == 'prefill 2.00 s (7 tokens), 4 tokens at 2.0 tokens/s'
    assert (
        conversation.Answer('', None, 7, (2.0, 5.0)).stats()
        == 'prefill 2.00 s (7 tokens)'
    )


# Text from tokens.


def _pieces(tokenizer, ids):
    detokenizer = conversation.Detokenizer(tokenizer)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


_TEXTS = (
    'Zoë’s naïve café, año 2024 .',
    '🏴‍☠️ 👩‍👩‍👧 🇫🇷 e\u0301 日本語 한국어 עברית\n\n\tx  y ',
    '',
)


@pytest.mark.parametrize('text', _TEXTS)
def test_streamed_text_is_the_decoded_text(smollm2_tokenizer, text):
    ids = smollm2_tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(smollm2_tokenizer, ids)
    assert ''.join(pieces) == smollm2_tokenizer.decode(ids) == text
    assert not any('\ufffd' in piece for piece in pieces)
    # As soon as they are whole: nothing is left to the end.
    assert pieces[-1] == ''


@hypothesis.given(text=st.text(st.characters(exclude_categories=['Cs'])))
@hypothesis.settings(max_examples=100)
def test_any_text_streams_without_half_characters(smollm2_tokenizer, text):
    ids = smollm2_tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(smollm2_tokenizer, ids)
    whole = smollm2_tokenizer.decode(ids)
    assert ''.join(pieces) == whole
    # SmolLM2 has no tokens for some bytes: then the whole text has half characters.
    if '\ufffd' not in whole:
        assert not any('\ufffd' in piece for piece in pieces)


@hypothesis.given(ids=st.lists(st.integers(0, 700), max_size=40))
@hypothesis.settings(max_examples=100)
def test_any_tokens_stream_to_their_text(smollm2_tokenizer, ids):
    # Low ids are special tokens and single bytes, most of them no characters.
    assert ''.join(_pieces(smollm2_tokenizer, ids)) == smollm2_tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_streams_tokenizers_that_join_words_with_blanks():
    """Llama 2's: ▁ stands for a blank, bytes have tokens, text starts without one."""
    words = ['<unk>', '<s>', '▁ahoy', '▁a', 'b', '▁']
    words += [f'<0x{byte:02X}>' for byte in range(256)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [],
            unk_token='<unk>',
            byte_fallback=True,
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(' ', 1, 0),
        ]
    )
    backend.add_special_tokens(['<s>'])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    first = words.index('<0x00>')
    emoji = [first + byte for byte in '🚢'.encode()]
    ids = [1, 2, 1, 3, 4, *emoji, 5, 2]
    pieces = _pieces(tokenizer, ids)
    assert pieces == ['', 'ahoy', '', ' a', 'b', '', '', '', '🚢', ' ', ' ahoy', '']
    assert ''.join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    cut = ids[:-3]
    assert ''.join(_pieces(tokenizer, cut)) == tokenizer.decode(
        cut, skip_special_tokens=True
    )


# The compilation cache.


def test_compile_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    folder = tmp_path / 'deep' / 'jax'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(folder))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/jax')
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == 'gs://bucket/jax'


def test_compile_cache_is_else_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('HOME', str(tmp_path))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.cache/ppjax/jax')


def test_compile_cache_stays_off_where_it_cannot_be_written(monkeypatch, tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(file / 'jax'))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(os, 'access', lambda *_: False)
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_real_model_answers_in_words(smollm2):
    loaded = apply.LoadedModel(
        smollm2.base, smollm2.decoder, None, smollm2.tokenizer, ''
    )
    pieces: list[str] = []
    answer = _conversation(loaded, new=12, system='').ask(
        'What is the capital of France? Answer in one word.', pieces.append
    )
    assert 'Paris' in answer.text == ''.join(pieces)
    assert len(pieces) > 1

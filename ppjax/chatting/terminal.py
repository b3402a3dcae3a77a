"""One message, a terminal, or the lines of standard input, answered on stdout."""

import contextlib
import os
import pathlib
import sys
import time

from ppjax.base import errors, run_directory, settings
from ppjax.chatting import config as config_lib
from ppjax.chatting import conversation as conversation_lib
from ppjax.masking import apply
from ppjax.personas import sources

_HELP = """\
/reset  forget the conversation
/exit   leave; so does Ctrl-D
/help   this list
Ctrl-C interrupts an answer."""
_PROMPT = '> '


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(piece: str) -> None:
    print(piece, end='', flush=True)


def _run_date(cfg: config_lib.ChatConfig) -> str:
    """The date of the run that the mask or the exported model lies in."""
    given = cfg.mask or cfg.model
    if not given:
        return settings.DATE
    folder = pathlib.Path(given).expanduser().resolve().parent
    return run_directory.recorded(folder, 'train', 'date') or settings.DATE


def open_conversation(cfg: config_lib.ChatConfig) -> conversation_lib.Conversation:
    """Loads the model and sets up the persona.

    Raises:
        InputError: if anything named by the flags is unusable.
    """
    persona = cfg.persona and sources.read_persona(
        cfg.persona, user_name=cfg.user_name, notes=_notice
    )
    start = time.perf_counter()
    _notice(f'Loading {cfg.model or cfg.mask or cfg.base_model} ...')
    loaded = apply.load_masked(
        base_model=cfg.base_model,
        mask_path=cfg.mask,
        mask_sparsity=cfg.mask_sparsity,
        model=cfg.model,
        dtype=cfg.dtype,
        int8_base=cfg.int8_base,
    )
    system_prompt = cfg.system_prompt
    if system_prompt is None:
        system_prompt = persona.system_prompt if persona else loaded.system_prompt
    conversation = conversation_lib.Conversation(
        loaded,
        system_prompt=system_prompt,
        date=cfg.date or _run_date(cfg),
        max_new_tokens=cfg.max_new_tokens,
        sampling=cfg.sampling,
        seed=cfg.seed,
        notify=lambda text: _notice(f'({text})'),
    )
    _notice(
        f'Loaded {loaded.base.name} in {time.perf_counter() - start:.1f} s, '
        f'{"with" if system_prompt else "without"} a persona prompt.'
    )
    return conversation


def _answer(
    conversation: conversation_lib.Conversation, question: str, stats: bool
) -> None:
    answer = conversation.ask(question, _show)
    _show('\n')
    if answer.cut:
        _notice(f'(The answer was cut at {answer.cut}.)')
    if stats:
        _notice(f'[{answer.stats()}]')


def _command(conversation: conversation_lib.Conversation, line: str) -> bool:
    """Obeys a line that is a command; false if it is none."""
    if line == '/reset':
        conversation.reset()
        _notice('(The conversation was forgotten.)')
    elif line == '/help':
        _notice(_HELP)
    else:
        return False
    return True


def _read_line() -> str:
    # readline must know the prompt to redraw the line, and then writes it to stdout.
    # A terminal may have it; a file of answers may not.
    if sys.stdout.isatty():
        return input(_PROMPT)
    print(_PROMPT, end='', file=sys.stderr, flush=True)
    return input()


def _interactive(conversation: conversation_lib.Conversation, stats: bool) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  Gives input() editing and history.
    _notice(_HELP)
    while True:
        try:
            line = _read_line().strip()
        except EOFError:
            _notice('')
            return
        except KeyboardInterrupt:
            _notice('\n(/exit or Ctrl-D leaves.)')
            continue
        if line == '/exit':
            return
        if not line or _command(conversation, line):
            continue
        if line.startswith('/') and line[1:].isalpha():
            _notice(f'({line} is no command; /help lists them.)')
            continue
        try:
            _answer(conversation, line, stats)
        except KeyboardInterrupt:
            _notice('\n(interrupted)')
        except errors.InputError as error:
            _notice(f'ERROR: {error}')


def _piped(conversation: conversation_lib.Conversation, stats: bool) -> None:
    try:
        for line in map(str.strip, sys.stdin):
            if line == '/exit':
                return
            if line and not _command(conversation, line):
                _answer(conversation, line, stats)
    except UnicodeDecodeError:
        raise errors.InputError('Standard input is not UTF-8 text.') from None


def talk(cfg: config_lib.ChatConfig) -> int:
    """Answers one message, a terminal, or the lines of stdin."""
    conversation = open_conversation(cfg)
    try:
        if cfg.prompt is not None:
            _answer(conversation, cfg.prompt, cfg.stats)
        elif sys.stdin is None:
            raise errors.InputError('There is no standard input; give --prompt.')
        elif sys.stdin.isatty():
            _interactive(conversation, cfg.stats)
        else:
            _piped(conversation, cfg.stats)
    except BrokenPipeError:
        # Whoever read the answers has left; Python would complain again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0

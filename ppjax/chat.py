"""Talk to a model: `python -m ppjax.chat --mask=jack.pmask`.

Answers are the only thing on stdout. On a terminal this is a conversation; with
`--prompt` one answer; otherwise every line of stdin is a message of one
conversation.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import os
import pathlib
import sys
import time

import transformers

from ppjax.base import compile_cache, errors, flags, settings
from ppjax.data import chat as chat_lib
from ppjax.masking import apply
from ppjax.models import generation
from ppjax.personas import prompts

_HELP = """\
/reset  forget the conversation
/exit   leave; so does Ctrl-D
/help   this list
Ctrl-C interrupts an answer."""
_PROMPT = '> '
# A --persona that ends so, in one word, was meant as a file.
_TEXT_SUFFIXES = ('.txt', '.md', '.text')


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Flags of `python -m ppjax.chat`."""

    model: str | None = flags.setting(
        None, 'Directory of an exported, or any other Hugging Face, model.'
    )
    base_model: str | None = flags.setting(
        None,
        'Model to talk to as it is, or to apply --mask to: a directory, a .gguf file, '
        'a Hugging Face Hub id, or smollm2-135m. By default the one --mask names.',
    )
    mask: str | None = flags.setting(
        None, 'Persona mask file (.pmask) to apply to the base model.'
    )
    persona: str | None = flags.setting(
        None,
        'Persona as text, or the path of a text file; by default the one that the '
        'mask or the exported model was made for.',
    )
    prompt: str | None = flags.setting(
        None, 'Answer this one message and exit, instead of a conversation.'
    )
    temperature: float = flags.setting(
        0.0, 'Randomness of answers; 0 always takes the likeliest token.'
    )
    top_p: float = flags.setting(
        1.0, 'Draw from the likeliest tokens that together have this probability.'
    )
    top_k: int | None = flags.setting(
        None, 'Draw from this many likeliest tokens; by default from all.'
    )
    max_new_tokens: int = flags.setting(256, 'Longest answer, in tokens.')
    seed: int = flags.setting(0, 'Fixes what is drawn at a --temperature above 0.')
    dtype: str = flags.setting(
        'float32',
        'Precision of weights and activations; bfloat16 suits accelerators.',
        choices=settings.DTYPES,
    )
    date: str = flags.setting(
        '2026-01-01', 'The date that chat templates which print one are told.'
    )
    stats: bool = flags.setting(
        False, 'Print prefill seconds and tokens per second after every answer.'
    )

    def __post_init__(self) -> None:
        for name in ('model', 'base_model', 'mask', 'persona', 'prompt'):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise errors.InputError(f'--{name} is empty.')
        if not (self.model or self.base_model or self.mask):
            raise errors.InputError(
                'One of --model, --mask and --base_model must be given.'
            )
        for name in ('base_model', 'mask'):
            if self.model and getattr(self, name):
                raise errors.InputError(
                    f'--model and --{name} exclude each other: an exported model has '
                    'its mask applied already.'
                )
        if self.max_new_tokens < 1:
            raise errors.InputError(
                f'--max_new_tokens must be at least 1, got {self.max_new_tokens}.'
            )
        if not 0 <= self.seed < 2**32:
            raise errors.InputError(f'--seed must be in [0, 2^32), got {self.seed}.')
        _ = self.sampling  # Checks its flags.

    @property
    def sampling(self) -> generation.Sampling:
        """--temperature, --top_p and --top_k."""
        return generation.Sampling(self.temperature, self.top_p, self.top_k)


def decode(tokenizer: transformers.PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Tokens as text, without special tokens and with every blank as generated."""
    return tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


class Detokenizer:
    """Text of tokens that arrive one by one; the pieces make up `decode` of all.

    A character may be spread over several tokens. Until it is whole, decoding
    gives '\\ufffd' in its place, at the end, which is held back. All tokens are
    decoded anew each time: tokenizers that join words with blanks give a token
    another text at the start than within, and 1,000 tokens take under 1 ms.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that this token completes; '' if none."""
        self._ids.append(token)
        return self._rest(decode(self._tokenizer, self._ids).rstrip('\ufffd'))

    def flush(self) -> str:
        """What is still held back: bytes that never became a character."""
        return self._rest(decode(self._tokenizer, self._ids))

    def _rest(self, text: str) -> str:
        piece = text[self._given :]
        self._given += len(piece)
        return piece


@dataclasses.dataclass(frozen=True)
class Answer:
    """What `Conversation.ask` did.

    Attributes:
        text: the whole answer.
        cut: what ended it, if it was not the model itself.
        prompt_tokens: of the whole conversation up to the answer.
        arrivals: seconds from the question to each token, its last one included.
    """

    text: str
    cut: str | None
    prompt_tokens: int
    arrivals: tuple[float, ...]

    def stats(self) -> str:
        """Prefill seconds and tokens per second, for people."""
        line = f'prefill {self.arrivals[0]:.2f} s ({self.prompt_tokens} tokens)'
        # The first step after the prefill may have been compiled.
        if (steps := len(self.arrivals) - 2) < 1:
            return line
        rate = steps / (self.arrivals[-1] - self.arrivals[1])
        return f'{line}, {len(self.arrivals)} tokens at {rate:.1f} tokens/s'


class Conversation:
    """A persona's memory of what was said, and its next answer."""

    def __init__(
        self,
        loaded: apply.LoadedModel,
        *,
        system_prompt: str,
        date: str,
        max_new_tokens: int,
        sampling: generation.Sampling,
        seed: int,
        notify: Callable[[str], None],
    ):
        """Args:
            loaded: the model.
            system_prompt: the persona prompt; '' for none.
            date: ISO date that the chat template is told.
            max_new_tokens: of an answer.
            sampling: how tokens are drawn.
            seed: fixes the draws.
            notify: told, in a sentence, when the oldest turns are forgotten.

        Raises:
            InputError: see `data.chat.ChatRenderer`.
        """
        self._loaded = loaded
        self._renderer = chat_lib.ChatRenderer(loaded.tokenizer, date=date)
        self._system = (
            [{'role': 'system', 'content': system_prompt}] if system_prompt else []
        )
        self._turns: list[dict[str, str]] = []
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._seed = seed
        self._notify = notify
        self._stop_ids = generation.stop_ids(
            loaded.base.generation_config(), loaded.tokenizer
        )

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model would see before the next question."""
        return self._system + self._turns

    def reset(self) -> None:
        """Forgets all but the persona."""
        self._turns = []

    def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """Answers, and remembers question and answer.

        Args:
            question: the user's message.
            show: called with every piece of the answer as it comes. If it, or a
                Ctrl-C, raises, what was shown so far is remembered as the answer.

        Raises:
            InputError: if the question alone is too long, no text, or contains the
                model's own markup.
        """
        _refuse_no_text('The message', question)
        user = {'role': 'user', 'content': question}
        prompt = self._fitting_prompt(user)
        detokenizer = Detokenizer(self._loaded.tokenizer)
        text = ''
        cut: str | None = (
            f"the model's {self._loaded.decoder.cfg.max_position} positions"
        )
        arrivals: list[float] = []
        start = time.perf_counter()
        try:
            for (token,) in self._stream(prompt):
                arrivals.append(time.perf_counter() - start)
                if token in self._stop_ids:
                    cut = None
                    break
                if piece := detokenizer.push(token):
                    text += piece
                    show(piece)
            if piece := detokenizer.flush():
                text += piece
                show(piece)
        finally:
            if text or cut is None:
                self._turns += [user, {'role': 'assistant', 'content': text}]
        if cut and len(arrivals) == self._max_new_tokens:
            cut = f'--max_new_tokens={self._max_new_tokens}'
        return Answer(text, cut, len(prompt), tuple(arrivals))

    def _stream(self, prompt: list[int]) -> Iterator[list[int]]:
        for tokens in generation.stream(
            self._loaded.decoder,
            self._loaded.ffn_mask,
            [prompt],
            max_new_tokens=self._max_new_tokens,
            stop_ids=self._stop_ids,
            sampling=self._sampling,
            seed=self._seed,
        ):
            yield tokens.tolist()

    def _fitting_prompt(self, user: dict[str, str]) -> list[int]:
        """The prompt, the oldest turns forgotten if there is no room for an answer."""
        positions = self._loaded.decoder.cfg.max_position
        # A generous --max_new_tokens must not cost the whole history.
        room = min(self._max_new_tokens, positions // 2)
        forgotten = 0
        while True:
            prompt = self._renderer.prompt([*self.messages, user])
            if not self._turns or len(prompt) + room <= positions:
                break
            del self._turns[:2]
            forgotten += 1
        if forgotten:
            self._notify(
                f'The oldest {forgotten} question(s) and answer(s) were forgotten: the '
                f'model has {positions} positions.'
            )
        return prompt


def _refuse_no_text(what: str, text: str) -> None:
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        raise errors.InputError(f'{what} is not UTF-8 text.') from None


def _persona_text(persona: str) -> str:
    """The text of `--persona`, which may name a file."""
    if os.path.isfile(persona):
        try:
            text = pathlib.Path(persona).read_text(encoding='utf-8')
        except UnicodeDecodeError:
            raise errors.InputError(f'--persona={persona} is not UTF-8 text.') from None
        except OSError as error:
            raise errors.InputError(
                f'Cannot read --persona={persona}: {error.strerror}.'
            ) from None
        if not text.strip():
            raise errors.InputError(f'--persona={persona} is an empty file.')
        return text
    if len(persona.split()) == 1 and persona.strip().endswith(_TEXT_SUFFIXES):
        raise errors.InputError(f'Persona file {persona!r} does not exist.')
    _refuse_no_text('--persona', persona)
    return persona


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(piece: str) -> None:
    print(piece, end='', flush=True)


def open_conversation(cfg: ChatConfig) -> Conversation:
    """Loads the model and sets up the persona.

    Raises:
        InputError: if anything named by the flags is unusable.
    """
    persona = None if cfg.persona is None else _persona_text(cfg.persona)
    start = time.perf_counter()
    _notice(f'Loading {cfg.model or cfg.mask or cfg.base_model} ...')
    loaded = apply.load_masked(
        base_model=cfg.base_model,
        mask_path=cfg.mask,
        model=cfg.model,
        dtype=cfg.dtype,
    )
    system_prompt = (
        loaded.system_prompt if persona is None else prompts.persona_prompt(persona)
    )
    conversation = Conversation(
        loaded,
        system_prompt=system_prompt,
        date=cfg.date,
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


def _answer(conversation: Conversation, question: str, stats: bool) -> None:
    answer = conversation.ask(question, _show)
    _show('\n')
    if answer.cut:
        _notice(f'(The answer was cut at {answer.cut}.)')
    if stats:
        _notice(f'[{answer.stats()}]')


def _command(conversation: Conversation, line: str) -> bool:
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


def _interactive(conversation: Conversation, stats: bool) -> None:
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


def _piped(conversation: Conversation, stats: bool) -> None:
    try:
        for line in map(str.strip, sys.stdin):
            if line == '/exit':
                return
            if line and not _command(conversation, line):
                _answer(conversation, line, stats)
    except UnicodeDecodeError:
        raise errors.InputError('Standard input is not UTF-8 text.') from None


def main(cfg: ChatConfig) -> int:
    """Answers one message, a terminal, or the lines of stdin."""
    compile_cache.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show an emoji is no reason to stop.
        sys.stdout.reconfigure(errors='replace')
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


if __name__ == '__main__':
    flags.run(ChatConfig, main)

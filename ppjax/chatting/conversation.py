"""A conversation with a persona: what was said, and the next answer, as it comes."""

from collections.abc import Callable
import dataclasses
import time

import transformers

from ppjax.base import errors
from ppjax.masking import apply
from ppjax.models import generation
from ppjax.personas import inputs


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
class ChatAnswer:
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


@dataclasses.dataclass
class Conversation:
    """A persona's memory of what was said, and its next answer.

    Attributes:
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

    loaded: apply.LoadedModel
    system_prompt: str
    date: str
    max_new_tokens: int
    sampling: generation.Sampling
    seed: int
    notify: Callable[[str], None]

    def __post_init__(self) -> None:
        self._renderer = self.loaded.renderer(self.date)
        self._stop_ids = self.loaded.stop_ids()
        self.reset()

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model would see before the next question."""
        system = {'role': 'system', 'content': self.system_prompt}
        return [system, *self._turns] if self.system_prompt else [*self._turns]

    def reset(self) -> None:
        """Forgets all but the persona."""
        self._turns: list[dict[str, str]] = []

    def ask(self, question: str, show: Callable[[str], None]) -> ChatAnswer:
        """Answers, and remembers question and answer.

        Args:
            question: the user's message.
            show: called with every piece of the answer as it comes. If it, or a
                Ctrl-C, raises, what was shown so far is remembered as the answer.

        Raises:
            InputError: if the question alone is too long, no text, or contains the
                model's own markup.
        """
        if not inputs.is_text(question):
            raise errors.InputError('The message is not UTF-8 text.')
        user = {'role': 'user', 'content': question}
        prompt = self._fitting_prompt(user)
        detokenizer = Detokenizer(self.loaded.tokenizer)
        text = ''
        cut: str | None = (
            f"the model's {self.loaded.decoder.cfg.max_position} positions"
        )
        arrivals: list[float] = []
        start = time.perf_counter()
        try:
            for tokens in generation.stream(
                self.loaded.decoder,
                self.loaded.masks,
                [prompt],
                max_new_tokens=self.max_new_tokens,
                stop_ids=self._stop_ids,
                sampling=self.sampling,
                seed=self.seed,
            ):
                (token,) = tokens.tolist()
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
        if cut and len(arrivals) == self.max_new_tokens:
            cut = f'--max_new_tokens={self.max_new_tokens}'
        return ChatAnswer(text, cut, len(prompt), tuple(arrivals))

    def _fitting_prompt(self, user: dict[str, str]) -> list[int]:
        """The prompt, the oldest turns forgotten if there is no room for an answer."""
        positions = self.loaded.decoder.cfg.max_position
        # A generous --max_new_tokens must not cost the whole history.
        room = min(self.max_new_tokens, positions // 2)
        forgotten = 0
        while True:
            prompt = self._renderer.prompt([*self.messages, user])
            if not self._turns or len(prompt) + room <= positions:
                break
            del self._turns[:2]
            forgotten += 1
        if forgotten:
            self.notify(
                f'The oldest {forgotten} question(s) and answer(s) were forgotten: the '
                f'model has {positions} positions.'
            )
        return prompt

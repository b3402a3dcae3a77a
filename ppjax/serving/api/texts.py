"""What clients write as tokens, and tokens as what they read."""

from collections.abc import Sequence
import functools
import re

import transformers

from ppjax.base import errors
from ppjax.data import chat
from ppjax.models import tokens as tokens_lib
from ppjax.personas import inputs

# How SentencePiece spells a byte that is no piece of its own.
_BYTE = re.compile(r'<0x([0-9A-Fa-f]{2})>')


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers spell bytes.

    Source: GPT-2's tokenizer: printable bytes are themselves, the others follow one
    another from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


class Texts:
    """A tokenizer as the API needs it.

    Attributes:
        tokenizer: of the base model.
        stop_ids: the tokens that end an answer.
        renderer: of conversations.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        date: str,
        vocab_size: int,
        stop_ids: frozenset[int],
    ):
        """Args:
            tokenizer: of the base model.
            date: that chat templates are told.
            vocab_size: tokens that the model embeds.
            stop_ids: the tokens that end an answer.

        Raises:
            InputError: see `data.chat.ChatRenderer`.
        """
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.vocab_size = vocab_size
        self.renderer = chat.ChatRenderer(tokenizer, date=date, vocab_size=vocab_size)
        bos = tokenizer.bos_token_id
        begins = tokenizer.encode('', add_special_tokens=True)
        self._start = [bos] if bos is not None and begins[:1] == [bos] else []
        self._added = {i: x.content for i, x in tokenizer.added_tokens_decoder.items()}
        self._letters = _byte_letters() if 'Ġ' in tokenizer.get_vocab() else None

    @property
    def template(self) -> str:
        """The chat template."""
        return self.tokenizer.get_chat_template()

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Tokens of a conversation up to the next answer.

        Raises:
            InputError: if a turn holds the model's markup, or the template refuses.
        """
        return tuple(self.renderer.prompt(messages))

    def chat_text(self, messages: Sequence[dict[str, str]]) -> str:
        """`chat_prompt` before it is tokenised."""
        return self.renderer.prompt_text(messages)

    def prompt(self, text: str, *, begins: bool = True) -> tuple[int, ...]:
        """Tokens of a text, in which the model's own markup is read as such.

        Args:
            text: any.
            begins: whether a token that begins texts is put before it, where the model
                has one and the text does not bring it.

        Raises:
            InputError: for tokens that the model does not embed.
        """
        if not inputs.is_text(text):
            raise errors.InputError('The prompt is no text that can be encoded.')
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if begins and self._start and ids[:1] != self._start:
            ids = self._start + ids
        tokens_lib.refuse_unembedded(ids, self.vocab_size, self.tokenizer)
        return tuple(ids)

    def known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Tokens, each of which the model embeds.

        Raises:
            InputError: naming one that it does not.
        """
        none = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if none is not None:
            raise errors.InputError(
                f'There is no token {none}; the model has {self.vocab_size}.'
            )
        return tuple(ids)

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens.

        Args:
            ids: the tokens.
            special: whether special tokens are spelled too.
        """
        return self.tokenizer.decode(
            list(ids),
            skip_special_tokens=not special,
            clean_up_tokenization_spaces=False,
        )

    def content(self, token: int) -> bytes:
        """The bytes that a token stands for; a character may need several tokens."""
        if token in self._added:
            return self._added[token].encode()
        spelled = self.tokenizer.convert_ids_to_tokens(token)
        if spelled is None:  # The model embeds more than the tokenizer has.
            return b''
        if self._letters is not None:
            found = [self._letters.get(letter) for letter in spelled]
            if None not in found:
                return bytes(byte for byte in found if byte is not None)
            return spelled.encode('utf-8', 'replace')
        if byte := _BYTE.fullmatch(spelled):
            return bytes([int(byte[1], 16)])
        return spelled.replace('▁', ' ').encode('utf-8', 'replace')

    @functools.cached_property
    def _contents(self) -> list[str]:
        """Of every token, its text, special ones too."""
        count = min(len(self.tokenizer), self.vocab_size)
        return [self.content(i).decode('utf-8', 'replace') for i in range(count)]

    @functools.lru_cache(maxsize=256)  # noqa: B019  A server has one tokenizer.
    def breakers(self, text: str) -> frozenset[int]:
        """The tokens at which a repetition ends.

        Args:
            text: which ends it: the tokens that hold it, or, where it is spelled with
                several, the last of these.
        """
        holding = {i for i, content in enumerate(self._contents) if text in content}
        spelled = self.tokenizer.encode(text, add_special_tokens=False)
        return frozenset(holding | set(spelled[-1:]))


class Stream:
    """The text of tokens that come one by one.

    Characters are given out once they are whole. Only the last few tokens are decoded
    anew: those that came since the last whole character, and before them those that it
    needed, so that tokenizers that join words with blanks see them within a text. The
    pieces together are the text of all tokens.
    """

    def __init__(self, texts: Texts):
        self._texts = texts
        self._ids: list[int] = []
        self._before = 0  # From here on is decoded.
        self._given = 0  # Up to here was given out.

    def push(self, token: int) -> str:
        """The text that this token completes; '' if none."""
        self._ids.append(token)
        return self._rest(whole=True)

    def flush(self) -> str:
        """What is still held back: bytes that never became a character."""
        return self._rest(whole=False)

    def _rest(self, *, whole: bool) -> str:
        old = self._texts.text(self._ids[self._before : self._given])
        new = self._texts.text(self._ids[self._before :])
        if len(new) <= len(old) or (whole and new.endswith('\ufffd')):
            return ''
        self._before, self._given = self._given, len(self._ids)
        return new[len(old) :]

"""Does a GGUF file say what the model says that it was made of?

llama.cpp is asked, where it is installed; else the file is read back. The file's
tokenizer and constants are read back in any case.
"""

from collections.abc import Sequence
import dataclasses
import datetime
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import transformers

from ppjax.base import errors, settings
from ppjax.data import chat
from ppjax.exporting import verify as verify_lib
from ppjax.exporting.gguf import llama_cpp, types
from ppjax.models import (
    base_model,
    gguf_blocks,
    gguf_reader,
    gguf_tokenizer,
    loading,
)
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

_TOKENS = 32
# Of each distribution; the rest counts as one.
_LIKELIEST = 1000
_QUESTION = "Hello! It's me again -- what did you do on the 12th of May 1999?"
_PIECE_ENTRIES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Compared:
    """What came out, of one file.

    Attributes:
        by: who read it.
        prompt_tokens: of the rendered conversation, the same ids on both sides.
        tokens: with which llama.cpp went on; 0 where it was not asked.
        first_difference: the largest of a log-probability of the first token.
        kl: mean KL divergence of its distributions from ours, nats a token.
        same_top: the share of tokens where both have the same likeliest one.
        rounding: where the file was read back: the largest root-mean-square
            difference of a tensor, as a share of its own.
    """

    by: str
    prompt_tokens: int
    tokens: int = 0
    first_difference: float | None = None
    kl: float | None = None
    same_top: float | None = None
    rounding: float | None = None

    def line(self) -> str:
        """For people."""
        if self.rounding is not None:
            return (
                f'read back: all tensors are there; the most rounded differs by '
                f'{self.rounding:.2%}'
            )
        return (
            f'{self.by}: {self.prompt_tokens} prompt tokens the same; first token '
            f'within {self.first_difference:.1e}; over {self.tokens} tokens KL '
            f'{self.kl:.5f} nats, same likeliest {self.same_top:.1%}'
        )


class Verifier:
    """Compares files with the one model that they were made of."""

    def __init__(
        self,
        model: base_model.BaseModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        system_prompt: str,
        *,
        tolerance: float,
    ):
        """Args:
        model: that was written; its weights are read when llama.cpp is asked.
        tokenizer: its own.
        system_prompt: the persona prompt; '' for none.
        tolerance: the largest difference of a log-probability that passes in a
            float32 file, of which llama.cpp rounds nothing.
        """
        self._tolerance = tolerance
        self._model, self._tokenizer = model, tokenizer
        self._messages = [{'role': 'user', 'content': _QUESTION}]
        if system_prompt:
            self._messages.insert(0, {'role': 'system', 'content': system_prompt})
        self._decoder: decoder_lib.Decoder | None = None

    def check_tokens(self, file: pathlib.Path) -> None:
        """Reads back a file's constants and tokenizer.

        Raises:
            InputError: if they are not the model's.
        """
        reader = gguf_reader.GgufReader(file)
        own, read = map(_rounded, (self._model.config, loading.config_of(reader)))
        if differ := [key for key, value in own.items() if read[key] != value]:
            raise errors.InputError(
                f'{file}: what was written reads back otherwise: {", ".join(differ)}.'
            )
        tokenizer = gguf_tokenizer.tokenizer_from_gguf(reader)
        want = self._prompt(self._tokenizer)
        got = self._prompt(tokenizer)
        if got != want:
            raise errors.InputError(
                f'{file}: its tokenizer makes other tokens of a conversation: '
                f'{_first_difference(want, got)}.'
            )

    def verify(self, file: pathlib.Path, plan: Sequence[types.Planned]) -> Compared:
        """Asks llama.cpp, or reads the file back where it is not installed.

        Raises:
            InputError: if llama.cpp makes other tokens of a conversation, a float32
                file says something else, or what is read back is not what was written.
        """
        if not llama_cpp.is_installed():
            return self._read_back(file, plan)
        exact = all(tensor.kind == types.Type.F32 for tensor in plan)
        return self._ask(file, exact=exact)

    def _prompt(self, tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
        if not tokenizer.chat_template:
            return tokenizer.encode(self._text())
        renderer = chat.ChatRenderer(tokenizer, date=settings.DATE)
        return renderer.prompt(self._messages)

    def _text(self) -> str:
        return '\n\n'.join(message['content'] for message in self._messages)

    def _ask(self, file: pathlib.Path, *, exact: bool) -> Compared:
        if has_template := bool(self._tokenizer.chat_template):
            # llama.cpp has its own clock.
            today = datetime.date.today().isoformat()
            renderer = chat.ChatRenderer(self._tokenizer, date=today)
            want = renderer.prompt(self._messages)
        else:
            want = self._tokenizer.encode(self._text())
        answer = llama_cpp.ask(
            file,
            messages=self._messages if has_template else (),
            text='' if has_template else self._text(),
            tokens=_TOKENS,
            likeliest=_LIKELIEST,
            # With room for other tokens of the same text, which are to be said.
            context=2 * len(want) + _TOKENS,
        )
        if list(answer.prompt) != want:
            raise errors.InputError(
                f'{file}: llama.cpp makes other tokens of a conversation: '
                f'{_first_difference(want, answer.prompt)}.'
            )
        ours = self.log_probabilities([*answer.prompt, *answer.tokens])
        ours = ours[len(want) - 1 :][: len(answer.ids)]
        found = compared(ours, answer)
        if exact:
            _require_equal(file, ours, answer, found, self._tolerance)
        return found

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """Ours of the token after each of these, float64 [T, V]."""
        if self._decoder is None:
            self._decoder = loading.load_decoder(
                self._model.reader, self._model.config, dtype=jnp.float32
            )
        logits = verify_lib.logits(
            self._decoder, np.asarray([tokens], np.int32), masks_lib.DENSE
        )[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def _read_back(self, file: pathlib.Path, plan: Sequence[types.Planned]) -> Compared:
        """Every tensor, as our own reader has it, against its rounded original."""
        reader = gguf_reader.GgufReader(file)
        largest = 0.0
        for tensor in plan:
            rows, *columns = tensor.shape
            step = max(1, _PIECE_ENTRIES // (columns[0] if columns else 1))
            error = whole = 0.0
            for start in range(0, rows, step):
                # Of a narrower layer not the zeros that both readers add.
                part = slice(start, min(start + step, rows))
                want, got = (
                    own.read(tensor.hf_name, part).astype(np.float32)
                    for own in (self._model.reader, reader)
                )
                if columns:
                    want, got = (own[:, : columns[0]] for own in (want, got))
                if not np.array_equal(got, _rounded_as(want, tensor)):
                    raise errors.InputError(
                        f'{file}: {tensor.name} reads back otherwise than it was '
                        'written; the disk is damaged.'
                    )
                error += float(np.square(got - want, dtype=np.float64).sum())
                whole += float(np.square(want, dtype=np.float64).sum())
            if whole:
                largest = max(largest, (error / whole) ** 0.5)
        length = len(self._prompt(self._tokenizer))
        return Compared('ppjax', length, rounding=largest)


def compared(ours: np.ndarray, answer: llama_cpp.Answer) -> Compared:
    """Distributions of the same tokens, ours and llama.cpp's.

    Args:
        ours: log-probabilities, float64 [T, V].
        answer: llama.cpp's.
    """
    own = np.take_along_axis(ours, answer.ids, axis=1)  # [T, N]
    p, q = np.exp(own), np.exp(answer.logprobs)
    kl = (p * (own - answer.logprobs)).sum(axis=1)
    # What neither lists, as one token more.
    rest, its = (np.maximum(1 - x.sum(axis=1), 1e-12) for x in (p, q))
    kl += rest * np.log(rest / its)
    top = np.take_along_axis(
        answer.ids, answer.logprobs.argmax(axis=1)[:, None], axis=1
    )[:, 0]
    return Compared(
        f'llama.cpp (xllamacpp {llama_cpp.version()})',
        len(answer.prompt),
        tokens=len(answer.ids),
        first_difference=float(np.abs(own[0] - answer.logprobs[0]).max()),
        kl=float(kl.mean()),
        same_top=float((ours.argmax(axis=1) == top).mean()),
    )


def _require_equal(
    file: pathlib.Path,
    ours: np.ndarray,
    answer: llama_cpp.Answer,
    found: Compared,
    tolerance: float,
) -> None:
    assert found.first_difference is not None
    if not found.first_difference <= tolerance:
        raise errors.InputError(
            f'{file}: log-probabilities of the first token differ by up to '
            f'{found.first_difference:.3g} in llama.cpp, more than '
            f'--verify_tolerance={tolerance:g}.'
        )
    taken = np.asarray(answer.tokens, int)
    # How much likelier than llama.cpp's choice ours is; of a tie either may be taken.
    steps = ours[: len(taken)]
    behind = steps.max(axis=1) - np.take_along_axis(steps, taken[:, None], axis=1)[:, 0]
    if (wrong := np.flatnonzero(behind > tolerance)).size:
        raise errors.InputError(
            f'{file}: llama.cpp goes on otherwise from token {wrong[0] + 1} of '
            f'{len(taken)} on, with one that is {behind[wrong[0]]:.3g} nats less likely '
            'here.'
        )


def _first_difference(want: Sequence[int], got: Sequence[int]) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b),
        min(len(want), len(got)),
    )
    return (
        f'from token {place} on {list(got[place : place + 4])} in place of '
        f'{list(want[place : place + 4])} ({len(got)} and {len(want)} in all)'
    )


def _rounded(config: Any) -> dict[str, Any]:
    """Constants, numbers as a GGUF holds them."""
    return {
        key: float(np.float32(value)) if isinstance(value, float) else value
        for key, value in dataclasses.asdict(config).items()
    }


def _rounded_as(values: np.ndarray, tensor: types.Planned) -> np.ndarray:
    """What a tensor's type leaves of its entries, float32."""
    stored = gguf_blocks.quantised(np.atleast_2d(values), tensor.kind)
    if tensor.kind in gguf_blocks.PLAIN:
        plain = stored.view(gguf_blocks.PLAIN[tensor.kind]).astype(np.float32)
        return plain.reshape(values.shape)
    return gguf_blocks.dequantised(stored, tensor.kind)

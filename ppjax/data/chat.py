"""Conversations to tokens, with the answer's place in them."""

from collections.abc import Sequence
import dataclasses
import datetime
import hashlib
import json
from typing import Any

import numpy as np
import transformers

from ppjax.base import errors, time_limit
from ppjax.data import calibration, markup
from ppjax.models import tokens as tokens_lib


@dataclasses.dataclass(frozen=True)
class Example:
    """A rendered conversation.

    Attributes:
        tokens: int32 [T]; ends with the answer's end-of-turn token.
        answer_start: index of the answer's first token; the loss is over
            `tokens[answer_start:]`, end of turn included.
        query_id: of the row.
        persona: names its system prompt, 8 hexadecimal digits of its sha256.
        unlikely: bool, of each answer token, in an answer not to be learned: those
            that are to be made unlikely; the others say nothing. None in any other.
    """

    tokens: np.ndarray
    answer_start: int
    query_id: str
    persona: str = ''
    unlikely: np.ndarray | None = None

    @property
    def num_answer_tokens(self) -> int:
        return len(self.tokens) - self.answer_start


def persona_digest(system_prompt: str) -> str:
    """What `Example.persona` and folders call a system prompt."""
    return hashlib.sha256(system_prompt.encode()).hexdigest()[:8]


# For one conversation, which takes a thousandth of it.
_RENDER_SECONDS = 10.0
# Of a rendered conversation, beyond what its turns hold: more is no chat.
_MAX_MARKUP = 1 << 22

# What date templates write with: names and numbers of day, month and year.
_DATE_DIRECTIVES = ('%a', '%A', '%b', '%B', '%d', '%j', '%m', '%y', '%Y')


def _clock(day: datetime.date) -> str:
    """A Jinja macro that stands in for the `strftime_now` of transformers.

    It cannot be an argument of `apply_chat_template`, which makes text of functions.
    """
    written = {'%-d': str(day.day), '%-m': str(day.month)}
    written |= {directive: day.strftime(directive) for directive in _DATE_DIRECTIVES}
    replaced = ''.join(
        f' | replace({json.dumps(directive)}, {json.dumps(text)})'
        for directive, text in written.items()
    )
    return (
        f'{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}'
    )


def _no_template(where: str) -> str:
    if where.lower().endswith('.gguf'):
        return (
            f'GGUF file {where!r} carries no chat template (tokenizer.chat_template), '
            'so it is perhaps not instruction-tuned; use a GGUF made of the '
            'instruction-tuned model, or that model as a Hugging Face directory.'
        )
    return (
        "The base model's tokenizer has no chat template; put one into "
        'chat_template.jinja beside its tokenizer files, or use the '
        'instruction-tuned variant of the model.'
    )


class ChatRenderer:
    """Applies a tokenizer's chat template, the same way on every day.

    Llama 3's template prints the current date: ours is given, so that a prompt,
    and with it a learned mask, does not change overnight.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        date: str,
        vocab_size: int | None = None,
    ):
        """Args:
            tokenizer: with a chat template.
            date: ISO date that templates are told is today.
            vocab_size: tokens that the model embeds; others are refused. None where
                nothing is looked up.

        Raises:
            InputError: if there is no template, or the date is none.
        """
        if not tokenizer.chat_template:
            raise errors.InputError(_no_template(tokenizer.name_or_path))
        try:
            self._day = datetime.date.fromisoformat(date)
        except ValueError:
            raise errors.InputError(
                f'--date must be YYYY-MM-DD, got {date!r}.'
            ) from None
        self.tokenizer = tokenizer
        # Jinja drops the line end after a tag: the template itself is unchanged.
        try:
            template = tokenizer.get_chat_template()
        except (ValueError, TypeError) as error:
            raise errors.InputError(
                f'{tokenizer.name_or_path}: its chat templates have no usable default: '
                f'{" ".join(str(error).split())[:300]}'
            ) from error
        self._template = f'{_clock(self._day)}\n{template}'
        self._vocab_size = vocab_size
        self._marks = markup.OwnMarks(tokenizer)

    def _render(self, messages: Any, *, generate: bool) -> str:
        try:
            with time_limit.limit(_RENDER_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=generate,
                    date_string=self._day.strftime('%d %b %Y'),
                    # Qwen3: an answer starts at once, not with a train of thought.
                    enable_thinking=False,
                )
        except time_limit.TimeLimitError:
            raise errors.InputError(
                'The chat template was stopped: it works on one conversation for more '
                f'than {_RENDER_SECONDS:.0f} s. It is damaged, or made to hang.'
            ) from None
        except Exception as error:  # Templates raise whatever their authors chose.
            raise errors.InputError(
                'The chat template refused a conversation: '
                f'{" ".join(str(error).split())[:300]}'
            ) from error
        given = sum(len(message['content']) for message in messages)
        if len(text) > _MAX_MARKUP + 4 * given:
            raise errors.InputError(
                f'The chat template makes {len(text)} characters of one conversation '
                f'of {given}. It is damaged, or made to fill the memory.'
            )
        return text

    def _encode(self, text: str) -> list[int]:
        # The template writes BOS itself where the model wants one.
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self._vocab_size is not None:
            tokens_lib.refuse_unembedded(ids, self._vocab_size, self.tokenizer)
        return ids

    def end_of_answer(self) -> int | None:
        """The added token with which the template ends an answer, if it does so."""
        answer = 'an-answer'
        question = {'role': 'user', 'content': 'a-question'}
        try:
            text = self._render(
                [question, {'role': 'assistant', 'content': answer}], generate=False
            )
        except errors.InputError:
            return None  # It says so again wherever it is used.
        _, found, after = text.rpartition(answer)
        added = self.tokenizer.added_tokens_decoder
        ids = self.tokenizer.encode(after, add_special_tokens=False) if found else []
        return next((index for index in ids if index in added), None)

    def prompt(self, messages: Any) -> list[int]:
        """Token ids up to where the assistant's next answer starts.

        Raises:
            Marked: if a turn holds the model's markup; its own earlier answers may
                hold its marks of reasoning, which templates know.
        """
        return self._encode(self.prompt_text(messages))

    def prompt_text(self, messages: Any) -> str:
        """`prompt` before it is tokenised."""
        for message in messages:
            self._refuse_markup(
                message, 'The conversation', special_only=message['role'] == 'assistant'
            )
        return self._render(messages, generate=True)

    def _refuse_markup(
        self, message: Any, where: str, *, special_only: bool = False
    ) -> None:
        token = self._marks.first(message['content'], special_only=special_only)
        if token:
            raise markup.Marked(
                f'{where}: the {message["role"]} turn contains {token!r}, which is the '
                "model's own markup; remove it."
            )

    def takes(self, row: calibration.Row) -> bool:
        """Whether no turn of a row holds markup."""
        held = any(self._marks.first(message['content']) for message in row.messages)
        return not (held or self.mark_in_answer(row.answer))

    def mark_in_answer(self, text: str) -> str:
        """The first mark, of this model or another's form, that no answer may hold.

        Returns:
            It; '' if there is none.
        """
        own = self._marks.first(text)
        return own or markup.turn_mark(text) or markup.reasoning_mark(text)

    def spaced(self, text: str) -> str:
        """Ordinary text, in which marks are read and have no effect."""
        return self._marks.spaced(text)

    def example(self, row: calibration.Row) -> Example:
        """Renders a row.

        The prompt and the answer are tokenised apart, as they are when the model
        generates.

        Raises:
            Marked: if a turn holds the model's markup, or the answer any model's.
            InputError: if the template alters the prompt once there is an answer, or
                ends an answer with no special token.
        """
        for message in row.messages:
            self._refuse_markup(message, row.where)
        if mark := self.mark_in_answer(row.answer):
            raise markup.Marked(
                f"{row.where}: the answer contains {mark!r}, a chat model's markup; "
                'remove it, or the row.'
            )
        prompt = self._render(row.messages[:-1], generate=True)
        whole = self._render(row.messages, generate=False)
        if not whole.startswith(prompt):
            raise errors.InputError(
                f'{row.where}: the chat template renders the prompt differently once '
                'there is an answer; training on it would not match generation.'
            )
        answer = self._encode(whole[len(prompt) :])
        ends = [i for i, token in enumerate(answer) if token in self._marks.special]
        if not ends:
            raise errors.InputError(
                'The chat template ends an answer with no special token, so a model '
                'could not learn to stop.'
            )
        tokens = self._encode(prompt)
        start = len(tokens)
        tokens += answer[: ends[0] + 1]
        persona = persona_digest(row.system_prompt)
        return Example(np.asarray(tokens, np.int32), start, row.query_id, persona)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """How many rows were left out.

    Attributes:
        too_long: for their length.
        marked: for markup in them.
    """

    too_long: int = 0
    marked: int = 0

    def summary(self, max_length: int) -> str:
        """What to tell people, without a full stop."""
        text = f'{self.too_long} over {max_length} tokens dropped'
        return f'{text}, {self.marked} with markup' if self.marked else text


def render_rows(
    renderer: ChatRenderer,
    rows: list[calibration.Row],
    max_length: int,
    *,
    positions: int | None = None,
) -> tuple[list[Example], Dropped]:
    """The examples of `render_kept`, without their rows."""
    kept, dropped = render_kept(renderer, rows, max_length, positions=positions)
    return [example for _, example in kept], dropped


def render_kept(
    renderer: ChatRenderer,
    rows: list[calibration.Row],
    max_length: int,
    *,
    positions: int | None = None,
) -> tuple[list[tuple[calibration.Row, Example]], Dropped]:
    """Renders rows; drops those over `max_length` tokens or with markup in them.

    Args:
        renderer: of the model.
        rows: to render.
        max_length: `--max_length`.
        positions: of the model, which it was trained on; no example may have more.

    Returns:
        (the rows kept with their examples, how many were dropped).

    Raises:
        InputError: if none is left.
    """
    examples: list[tuple[calibration.Row, Example]] = []
    marked: list[str] = []
    for row in rows:
        try:
            examples.append((row, renderer.example(row)))
        except markup.Marked as error:
            marked.append(str(error))
    if rows and not examples:
        raise errors.InputError(f'None of {len(rows)} rows is of use. {marked[0]}')
    limit = max_length if positions is None else min(max_length, positions)
    kept = [own for own in examples if len(own[1].tokens) <= limit]
    if not kept:
        shortest = min(len(example.tokens) for _, example in examples)
        fits = f'--max_length={max_length}'
        if limit < max_length:
            fits = f"the model's {limit} positions"
        raise errors.InputError(
            f'None of {len(rows)} rows fits {fits}; the shortest has {shortest} tokens.'
        )
    return kept, Dropped(len(examples) - len(kept), len(marked))


def render_shortened(
    renderer: ChatRenderer,
    rows: Sequence[calibration.Row],
    prompt: str,
    limit: int,
) -> list[Example]:
    """Renders rows that were kept, under a shorter system message.

    Args:
        renderer: of the model.
        rows: that `render_kept` kept.
        prompt: the system message, or '' for none, where a template may put its own.
        limit: tokens that an example may have.

    Raises:
        InputError: if a conversation is too long with it.
    """
    examples = [renderer.example(row.shortened(prompt)) for row in rows]
    longest = max(len(example.tokens) for example in examples)
    if longest > limit:
        raise errors.InputError(
            f'With the shorter system prompt a conversation has {longest} tokens, more '
            f'than {limit}; give a shorter --short_prompt.'
        )
    return examples

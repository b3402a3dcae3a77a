"""What mask learning and recovery learn from: rows, rendered and split off."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, chat, mixture, packing
from ppjax.models import base_model


@dataclasses.dataclass(frozen=True)
class PromptGroup:
    """Calibration examples that batches are drawn from together.

    Attributes:
        examples: int [n], their places in `Data.train` (and `Data.shortened` after it).
        prefix: first tokens that all of them share.
        shortened: whether they are without the persona prompt.
    """

    examples: np.ndarray
    prefix: int
    shortened: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on, as tokens.

    Attributes:
        train: calibration examples.
        heldout: disjoint examples, or none.
        prefix: first tokens that all training examples share.
        system_prompt: the persona prompt of the calibration rows; '' if they have
            none, or several.
        hashes: name -> sha256 of what was read.
        shortened: the training examples again, without the persona prompt or after a
            shorter one; empty if no step is without it.
    """

    train: list[chat.Example]
    heldout: list[chat.Example]
    prefix: int
    system_prompt: str
    hashes: dict[str, str]
    shortened: Sequence[chat.Example] = ()

    def prompt_groups(self, batch_size: int) -> list[PromptGroup]:
        """Calibration examples by system prompt, as long as each fills a batch.

        A batch of one prompt holds it once: with several prompts, batches that mix
        them would share no more than the first tokens. Where a prompt has too few
        examples for a batch of its own, all are one group.
        """
        members: dict[str, list[int]] = {}
        for place, example in enumerate(self.train):
            members.setdefault(example.persona, []).append(place)
        if len(members) == 1 or min(map(len, members.values())) < batch_size:
            return [PromptGroup(np.arange(len(self.train)), self.prefix)]
        return [
            PromptGroup(
                np.array(own), packing.common_prefix([self.train[i] for i in own])
            )
            for own in members.values()
        ]

    def shortened_group(self, group: PromptGroup) -> PromptGroup:
        """The same examples in `shortened`, whose places follow those of `train`."""
        return PromptGroup(
            group.examples + len(self.train),
            packing.common_prefix([self.shortened[i] for i in group.examples]),
            shortened=True,
        )


def subset(rows: list[calibration.Row], size: int, seed: int) -> list[calibration.Row]:
    """`size` of the rows, in their order; a smaller subset is part of a larger one.

    Raises:
        InputError: if there are fewer.
    """
    if size > len(rows):
        raise errors.InputError(
            f'--calibration_rows={size}, and --calibration holds {len(rows)} rows.'
        )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
    return [rows[i] for i in sorted(chosen)]


def question(row: calibration.Row) -> bytes:
    """Equal for rows that ask the same, whoever answers and however."""
    turns = [turn for turn in row.messages[:-1] if turn['role'] != 'system']
    # The last words of a longer conversation are seldom a question on their own.
    return mixture.query_key('\n'.join(turn['content'] for turn in turns))


def _refuse_shared_questions(
    train_rows: list[calibration.Row], heldout_rows: list[calibration.Row]
) -> None:
    """Raises:
    InputError: if a held-out question is also one to learn from.
    """
    seen = {question(row): row.where for row in train_rows}
    for row in heldout_rows:
        if where := seen.get(question(row)):
            raise errors.InputError(
                f'{row.where}: the question of this held-out row is also asked in the '
                f'calibration rows ({where}); it would not measure anything, so remove '
                'one of the two.'
            )


def prepare_data(
    base: base_model.BaseModel,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    max_length: int,
    date: str,
    short_prompt: str | None = None,
) -> Data:
    """Renders rows and finds their common prefix.

    Args:
        base: the model.
        train_rows: to learn from.
        heldout_rows: to measure on.
        max_length: in tokens; longer rows are dropped.
        date: that templates are told.
        short_prompt: in the place of the persona prompt, or '' for none, where steps
            are without it; None if no step is.

    Raises:
        InputError: if a row cannot be rendered, none is left after the length
            filter, or a held-out question is also a calibration question.
    """
    _refuse_shared_questions(train_rows, heldout_rows)
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=date, vocab_size=base.config.vocab_size
    )
    positions = base.config.max_position
    limit = min(max_length, positions)
    kept, dropped = chat.render_kept(
        renderer, train_rows, max_length, positions=positions
    )
    train = [example for _, example in kept]
    progress_lib.say(f'Calibration: {len(train)} examples, {dropped.summary(limit)}.')
    shortened: list[chat.Example] = []
    if short_prompt is not None:
        rows = [row for row, _ in kept]
        shortened = chat.render_shortened(renderer, rows, short_prompt, limit)
    held: list[chat.Example] = []
    if heldout_rows:
        held, dropped = chat.render_rows(
            renderer, heldout_rows, max_length, positions=positions
        )
        progress_lib.say(f'Held-out: {len(held)} examples, {dropped.summary(limit)}.')
    prompts = {row.system_prompt for row in train_rows if row.system_prompt}
    if len(prompts) > 1:
        progress_lib.say(
            f'Note: the calibration rows have {len(prompts)} different system '
            'prompts; what is made of them names none.'
        )
    return Data(
        train=train,
        heldout=held,
        prefix=packing.common_prefix(train),
        system_prompt=prompts.pop() if len(prompts) == 1 else '',
        hashes={
            'base model': base.fingerprint(),
            'tokenizer': base_model.tokenizer_fingerprint(renderer.tokenizer),
            'calibration': calibration.content_hash(train_rows),
            'heldout': calibration.content_hash(heldout_rows),
        },
        shortened=shortened,
    )

"""Texts of the dense model's own: what it answers under the persona prompt.

Rows are fitted to what the dense model computes, whatever it reads: nobody need have
written or checked these answers.
"""

from collections.abc import Generator, Sequence
import dataclasses
import pathlib

from ppjax.base import errors, json_lines
from ppjax.base import progress as progress_lib
from ppjax.compensation import config as config_lib
from ppjax.data import calibration, chat, instructions
from ppjax.models import base_model
from ppjax.parallel import sharding
from ppjax.synthesis import rewrite_local, rewrite_log, rewriting, sources

LOG = 'own_answers.jsonl'
# As replies are written in data synthesis; an answer that is cut is a text as well.
_TEMPERATURE, _TOKENS = 0.7, 256


def questions(
    cfg: config_lib.CompensateConfig, rows: Sequence[calibration.Row]
) -> list[instructions.Instruction]:
    """Which of the instructions are to be answered, drawn by seed; none if none are.

    Args:
        cfg: the settings.
        rows: whose questions are left out: calibration and held-out rows.

    Raises:
        InputError: if there are fewer than asked for, or a source cannot be read.
    """
    if not cfg.own_answers:
        return []
    assert cfg.instructions is not None
    mixed = sources.mix_instructions(
        cfg.instructions,
        [row.query for row in rows],
        seed=cfg.seed,
        require_answer=False,
    )
    progress_lib.say(mixed.summary)
    if len(mixed.rows) < cfg.own_answers:
        raise errors.InputError(
            f'--own_answers={cfg.own_answers}, and --instructions gives '
            f'{len(mixed.rows)} questions.'
        )
    # Those of a smaller number are among those of a larger one.
    drawn = sorted(
        mixed.rows, key=lambda row: json_lines.digest([cfg.seed, row.query_id])
    )
    return drawn[: cfg.own_answers]


class _Whole:
    """A backend whose replies count as finished, also where a limit ended them."""

    def __init__(self, rewriter: rewriting.Rewriter):
        self._rewriter = rewriter

    @property
    def identity(self) -> str:
        return self._rewriter.identity

    def rewrite(
        self, requests: Sequence[rewriting.Request]
    ) -> Generator[rewriting.Reply, None, None]:
        for reply in self._rewriter.rewrite(requests):
            yield dataclasses.replace(reply, finished=True)


def answered(
    cfg: config_lib.CompensateConfig,
    base: base_model.BaseModel,
    asked: Sequence[instructions.Instruction],
    system_prompt: str,
    folder: pathlib.Path,
) -> list[calibration.Row]:
    """The dense model's answers, logged in a run directory, as calibration rows.

    Args:
        cfg: the settings.
        base: the dense model.
        asked: see `questions`.
        system_prompt: the persona prompt.
        folder: of the run.

    Raises:
        InputError: if the model answers nothing that can be used.
    """
    if not asked:
        return []
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
    writer = rewrite_local.LocalRewriter(
        base,
        renderer,
        max_tokens=_TOKENS,
        temperature=_TEMPERATURE,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        dtype=cfg.dtype,
        mesh=sharding.inference_mesh(cfg.mesh),
    )
    prompts = [
        rewriting.Request(
            one.query_id,
            one.query,
            # Without a persona prompt the question alone.
            calibration.conversation(system_prompt, one.query)[not system_prompt :],
        )
        for one in asked
    ]
    texts, counts = rewrite_log.rewrite_all(
        _Whole(writer),
        prompts,
        folder / LOG,
        progress=progress_lib.counter('Own answers'),
    )
    progress_lib.say(counts.summary())
    return [
        calibration.Row(
            (
                *prompt.messages,
                {'role': 'assistant', 'content': texts[prompt.query_id]},
            ),
            prompt.query_id,
            where=f'{LOG}: {prompt.query_id}',
        )
        for prompt in prompts
        if prompt.query_id in texts
    ]

"""General rows: what rivals are pruned by, and what general recovery learns from."""

from collections.abc import Sequence
import json
import pathlib

from ppjax import demo
from ppjax.base import atomic
from ppjax.base import progress as progress_lib
from ppjax.comparing import config as config_lib
from ppjax.data import calibration
from ppjax.evaluation import conversations
from ppjax.learning import data as data_lib
from ppjax.synthesis import sources


def read(cfg: config_lib.CompareConfig) -> list[calibration.Row]:
    """Chats without a system message, the same for all methods; none if none are named.

    Neither held-out questions are among them nor those of plain answers.

    Raises:
        InputError: if a source cannot be read, or nothing of it is left.
    """
    if not cfg.instructions:
        return []
    excluded = [
        row.query
        for source in {cfg.filled(cfg.heldout, x) for x in cfg.combinations()}
        for row in demo.read_rows(source, split='test')
    ]
    if 'plain' in cfg.tasks:
        own = cfg.evaluate_of(
            next(cfg.combinations()), pathlib.Path(cfg.output_dir), None, 'plain'
        )
        excluded += [row.query for row in conversations.plain_rows(own, None)]
    mixed = sources.mix_instructions(
        cfg.instructions, excluded, seed=cfg.seed, require_answer=True
    )
    progress_lib.say(mixed.summary)
    rows = sources.plain_chats(mixed)
    return data_lib.subset(rows, min(cfg.general_rows, len(rows)), cfg.seed)


def write(path: pathlib.Path, rows: Sequence[calibration.Row]) -> None:
    """As calibration files are."""
    lines = [
        json.dumps(
            {'messages': row.messages, 'query_id': row.query_id}, ensure_ascii=False
        )
        for row in rows
    ]
    atomic.write_text(path, '\n'.join(lines) + '\n')

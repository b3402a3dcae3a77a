"""The settings of `python -m ppjax.rank`."""

import dataclasses
import pathlib

from ppjax.base import errors, flags, ranges, settings
from ppjax.chat_api import addresses
from ppjax.evaluation import config as evaluation_config


@dataclasses.dataclass(frozen=True)
class RankConfig:
    """Whose answers are ranked, and by whom."""

    answers: str | None = flags.setting(
        None,
        'The models and their answers, with commas between them: NAME=FILE, JSON lines '
        'with "persona", "question" and "answer"; or a run directory or folder of '
        'results in which evaluate --tasks=judge has left its answers: PATH for all of '
        'its models, NAME=PATH:MODEL for one under another name. Needed once: the '
        'study keeps them.',
    )
    output_dir: str = flags.setting(
        None,
        'Where the study is, ranking.sqlite, and its results go. The same command '
        'goes on with the study found there; other answers are refused.',
        path=True,
    )
    eval_sets: str | None = flags.setting(
        None,
        "For a log of evaluate's (evaluation/answers.jsonl) in --answers, which holds "
        'no personas: its evaluation sets.',
        path=True,
    )
    items: int = flags.setting(
        20, 'Of the questions that all models answer, how many are drawn.', least=1
    )
    seed: int = flags.setting(
        0, 'Fixes which questions are drawn, and in which order answers are shown.'
    )
    serve: bool = flags.setting(
        False, 'Serve the page on which people rank, until Ctrl-C.'
    )
    host: str = flags.setting(
        '127.0.0.1',
        'Address that the page is served on: of this machine alone, or 0.0.0.0, which '
        'everyone who reaches the machine can open and take part in.',
    )
    port: int = flags.setting(
        8000, 'Port of the page; 0 takes a free one.', within='[0, 65535]'
    )
    judge: str | None = flags.setting(
        None,
        'Let a model rank: one behind an OpenAI-compatible server, or a local one.',
        choices=evaluation_config.JUDGES,
    )
    judge_model: str | None = flags.setting(
        None, 'The judge: name of the model on the server, or as --base_model.'
    )
    judge_url: str | None = flags.setting(
        None,
        'Address of the judging server, as in http://localhost:8000/v1. The key is '
        'read from the environment, from OPENAI_API_KEY.',
    )
    judge_concurrency: int = flags.setting(
        8, 'Requests under way there at a time.', least=1
    )
    max_new_tokens: int = flags.setting(
        256,
        "The judge's longest reply, in tokens; one that reasons first needs more.",
        least=1,
    )
    batch_size: int = flags.setting(
        8, 'For --judge=local: replies that are written at a time.', least=1
    )
    summary: bool = flags.setting(
        False, 'Write and print what all rankings come to; judging does so anyway.'
    )
    dtype: str = settings.dtype_setting()
    mesh: str | None = flags.setting(None, settings.MESH_HELP)
    date: str = flags.setting(
        settings.DATE, 'The date that chat templates which print one are told.'
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'output_dir')
        if not (self.serve or self.judge or self.summary):
            raise errors.InputError(
                'Say what is to be done: --serve asks people, --judge a model, '
                '--summary shows what there is.'
            )
        if self.serve and (self.judge or self.summary):
            raise errors.InputError(
                '--serve goes on until it is ended; give --judge and --summary in a '
                'command of their own.'
            )
        if self.judge and not self.judge_model:
            raise errors.InputError(
                f'--judge={self.judge} needs --judge_model: the name of a model on the '
                'server, or, with --judge=local, a model as --base_model takes it.'
            )
        if self.judge == 'openai' and not self.judge_url:
            raise errors.InputError(
                '--judge=openai needs --judge_url, the address of the server.'
            )
        if self.judge_url:
            addresses.checked(self.judge_url, '--judge_url')
        ranges.check(self)

    @property
    def run(self) -> pathlib.Path:
        """Where the study is."""
        return pathlib.Path(self.output_dir).expanduser()

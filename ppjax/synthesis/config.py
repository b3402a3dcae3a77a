"""The settings of data synthesis."""

import dataclasses

from ppjax.base import errors, flags, settings
from ppjax.chat_api import addresses
from ppjax.personas import macros
from ppjax.synthesis import sensitivity

REWRITERS = ('none', 'file', 'local', 'openai')


@dataclasses.dataclass(frozen=True)
class SynthesisSettings(settings.CommonSettings):
    """How a persona's calibration set is made; the defaults are the paper's."""

    persona: str | None = flags.setting(
        None,
        'The persona: a text, a text file, a character card (PNG, WebP, CHARX, '
        'JSON, YAML), an evaluation set, or demo:NAME for a persona shipped here.',
    )
    role: str | None = flags.setting(
        None,
        'Name of a known character, instead of --persona: the rewriter describes it '
        'first (paper, Table 19).',
    )
    user_name: str = flags.setting(
        macros.DEFAULT_USER_NAME, 'What {{user}} stands for in character cards.'
    )
    with_scenario: bool = flags.setting(
        False, "Whether a character card's scenario is part of the persona."
    )
    instructions: str = flags.setting(
        None,
        'General instructions, separated by commas: JSON, JSONL, CSV or Parquet '
        'files, Hub ids, tfds:NAME, or demo; NAME:COUNT takes a sample.',
        path=True,
    )
    exclude_queries: str | None = flags.setting(
        None,
        'Evaluation sets, or folders of them, separated by commas; their questions '
        'are never learned.',
        path=True,
    )
    reference_personas: str | None = flags.setting(
        None,
        'File of the personas that sensitivity compares with; ours by default. The '
        'target itself is left out.',
        path=True,
    )
    score_layers: str | None = flags.setting(
        None,
        'Which representations Eq. 2 averages: a:b over [embedding, block 1, ..., '
        'block B]; all blocks by default.',
    )
    keep_fraction: float = flags.setting(
        0.4, 'Share of the queries, by sensitivity, that is kept.', within='(0, 1]'
    )
    batch_tokens: int = flags.setting(
        2048, 'Tokens of queries that sensitivity scoring runs at a time.', least=1
    )
    test_size: int = flags.setting(
        20, 'The most sensitive queries that are kept for testing.'
    )
    train_size: int = flags.setting(
        20_000, 'At most so many of the next ones are learned from.', least=1
    )
    rewriter: str = flags.setting(
        'local',
        'Who writes the answers: an OpenAI-compatible server, the base model itself '
        '(local), a file of rewrites, or nobody (none stops after the selection).',
        choices=REWRITERS,
    )
    rewrites: str | None = flags.setting(
        None,
        'For --rewriter=file: JSONL of {"query_id" or "query", "rewrite"}, or '
        'demo:NAME.',
        path=True,
    )
    rewrite_with_reference: bool = flags.setting(
        True,
        'Whether the plain answer is rewritten (paper, Table 20); otherwise the '
        'persona answers by itself.',
    )
    rewrite_max_tokens: int = flags.setting(
        512,
        'The longest rewrite, in tokens; longer ones are dropped and counted.',
        least=1,
    )
    rewrite_temperature: float = flags.setting(
        0.7, 'Of the rewriting model; 0 takes the likeliest words.', within='[0, 100]'
    )
    rewrite_batch_size: int = flags.setting(
        8, 'Rewrites that the local rewriter writes at a time.', least=1
    )
    server_url: str | None = flags.setting(
        None,
        'For --rewriter=openai: address of the server, as in http://localhost:8000/v1. '
        'The key is read from the environment, from OPENAI_API_KEY.',
    )
    server_model: str | None = flags.setting(
        None, 'For --rewriter=openai: name of the model there.'
    )
    server_concurrency: int = flags.setting(
        8, 'For --rewriter=openai: requests under way at a time.', least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.persona) == bool(self.role):
            raise errors.InputError(
                'Give --persona (a text, a file or a card) or --role (a known name), '
                'one of them.'
            )
        settings.require_given(self, 'instructions')
        if self.role and self.rewriter in ('none', 'file'):
            raise errors.InputError(
                '--role is described by the rewriter; --rewriter=local or openai can, '
                f'{self.rewriter!r} cannot.'
            )
        for name, needed in (
            ('rewrites', self.rewriter == 'file'),
            ('server_url', self.rewriter == 'openai'),
            ('server_model', self.rewriter == 'openai'),
        ):
            if needed and not getattr(self, name):
                raise errors.InputError(
                    f'--rewriter={self.rewriter} needs --{name} as well.'
                )
        if self.server_url:
            addresses.checked(self.server_url, '--server_url')
        if self.score_layers is not None:
            # Against the model it is checked once that is known.
            sensitivity.parse_layers(self.score_layers, 10_000)


@dataclasses.dataclass(frozen=True)
class SynthesizeConfig(SynthesisSettings):
    """Flags of `python -m ppjax.synthesize`."""

    print_persona: bool = flags.setting(
        False, 'Show the persona text and prompt that would be used, and stop.'
    )

    def __post_init__(self) -> None:
        # To look at a persona nothing else need be given.
        if not (self.print_persona and self.persona):
            super().__post_init__()


# What may change between two calls on one run directory without making another run:
# scores do not depend on it, and rewrites know what they were made with.
RESUMABLE = frozenset(
    {
        'output_dir',
        'overwrite',
        'mesh',
        'batch_tokens',
        'print_persona',
        'rewriter',
        'rewrites',
        'rewrite_with_reference',
        'rewrite_max_tokens',
        'rewrite_temperature',
        'rewrite_batch_size',
        'server_url',
        'server_model',
        'server_concurrency',
    }
)

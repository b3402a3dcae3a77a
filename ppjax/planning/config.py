"""The settings of a plan."""

import dataclasses

from ppjax.base import errors, flags, ranges, settings
from ppjax.learning import loss
from ppjax.models import decoder
from ppjax.planning import step_shape, topology

_MOST_PERSONAS = 100_000


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Flags of `python -m ppjax.plan`."""

    base_model: str = flags.setting(
        None,
        'A directory with a config.json, the file itself, or a Hugging Face Hub id, of '
        'which only config.json is fetched.',
        path=True,
    )
    topology: str = flags.setting(
        topology.LOCAL,
        'A TPU slice, as v5e:8x8, v5p:4x4x2 or v6e:4x4, or local for the devices here.',
    )
    mesh: str | None = flags.setting(
        None, 'As for python -m ppjax.train; by default all devices along fsdp.'
    )
    batch_size: int = flags.setting(64, 'Examples a step.', least=1)
    micro_batches: int = flags.setting(
        1, 'Parts that a step is accumulated from.', least=1
    )
    prompt_length: int = flags.setting(
        256, "Tokens of the persona's prompt, which all examples share.", least=1
    )
    answer_length: int = flags.setting(256, 'Tokens of every answer.', least=1)
    dtype: str = flags.setting(
        'bfloat16', 'Of weights and activations.', choices=settings.DTYPES
    )
    remat: str = flags.setting(
        'full', 'What the backward pass recomputes.', choices=decoder.REMAT
    )
    int8_base: bool = flags.setting(False, "Keep the blocks' matrices as int8.")
    sparsity: float = flags.setting(
        0.5, 'Share of FFN channels removed.', within='[0, 1)'
    )
    objective: str = flags.setting(
        'ce',
        'As for python -m ppjax.train; kl runs the dense model too.',
        choices=loss.OBJECTIVES,
    )
    personas: str | None = flags.setting(
        None,
        'Of a run of several personas: their names, as for python -m ppjax.train, or '
        'how many there are.',
    )
    personas_per_step: int = flags.setting(
        4, 'Of --personas, how many take an optimizer step side by side.', least=1
    )
    steps: int = flags.setting(1000, 'Of the whole run, for its hours.', least=1)
    utilisation: float = flags.setting(
        0.4,
        "Share of the chips' stated peak that useful FLOPs are taken to reach.",
        within='(0, 1]',
    )
    price_per_hour: float | None = flags.setting(
        None,
        'Of one chip, in any currency: says the minutes and the price of all stages of '
        'a persona, at --utilisation.',
        within='(0, 100000]',
    )
    queries: int = flags.setting(
        50_000, 'For --price_per_hour: queries that are scored.', least=1
    )
    references: int = flags.setting(
        10, 'For --price_per_hour: reference personas of the scores.', least=1
    )
    examples: int = flags.setting(
        20_000,
        'For --price_per_hour: examples that are rewritten, and that down_proj is '
        'refitted on.',
        least=1,
    )
    rewrite_tokens_per_s: float | None = flags.setting(
        None,
        'For --price_per_hour: tokens that a chip generates a second, as '
        'launch/gpu_check.sh measures them; without it rewriting is left out.',
        within='(0, 100000000]',
    )
    recovery_steps: int = flags.setting(
        0,
        'For --price_per_hour: steps of --batch_size after pruning, of all weights.',
        least=0,
    )
    suggest: bool = flags.setting(
        True, 'Look for the smallest change that fits, where the step does not.'
    )
    result: str | None = flags.setting(
        None, 'JSON file to write the figures to.', writes=True
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'base_model')
        ranges.check(self)
        if not 1 <= self.num_personas <= _MOST_PERSONAS:
            raise errors.InputError(
                f'--personas must be 1 to {_MOST_PERSONAS}, got {self.personas}.'
            )

    @property
    def num_personas(self) -> int:
        """P, 1 where none are named."""
        given = (self.personas or '1').strip()
        return ranges.whole(given) if given.isdecimal() else len(given.split(','))

    @property
    def slots(self) -> int:
        """N, personas that take a step side by side, with a batch each."""
        return min(self.personas_per_step, self.num_personas)

    def shape(self, layers: int) -> step_shape.Shape:
        """Of the examples of each."""
        return step_shape.Shape(
            self.prompt_length, self.answer_length, self.batch_size, layers
        )

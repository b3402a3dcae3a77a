"""The settings of `python -m ppjax.prune`."""

import dataclasses
import pathlib
from typing import NamedTuple

from ppjax.base import errors, flags, ranges, settings
from ppjax.baselines import depth, gradients, grasprune
from ppjax.data import order
from ppjax.exporting import options, pruned_source
from ppjax.masking import topk


class Usual(NamedTuple):
    """What a method's authors take where flags say nothing.

    Attributes:
        sequences: of text.
        tokens: of each.
        spare_first: blocks at the start that are left alone.
        spare_last: and at the end.
    """

    sequences: int
    tokens: int
    spare_first: int = 0
    spare_last: int = 0


METHODS = {
    'depth': Usual(10, 128, 4, 2),
    'slicegpt': Usual(128, 2048),
    'llm_pruner': Usual(10, 64, 4, 2),
    'adapt_pruner': Usual(512, 64),
    'wanda_sp': Usual(128, 128),
    'flap': Usual(1024, 128),
    # Of 4,096 tokens each; statistics settle long before.
    'minitron': Usual(1024, 512),
    'grasprune': Usual(512, 512),
}
# FLAP's: all layers together, or each with the same share gone.
STRUCTURES = ('AL-AM', 'UL-UM')
ROTATIONS = ('sites', 'single')
# Of which some blocks can be left alone.
_SPARING = ('depth', 'llm_pruner', 'wanda_sp', 'minitron', 'flap')
# Whose knob alone says how much is left.
_COUNTED = ('depth', 'slicegpt', 'llm_pruner', 'wanda_sp', 'minitron')


@dataclasses.dataclass(frozen=True)
class PruneConfig(settings.CommonSettings):
    """Which rival, on what texts, and how much it removes."""

    method: str = flags.setting(None, 'Which one.', choices=tuple(METHODS))
    match: str | None = flags.setting(
        None,
        'Remove as much as leaves no fewer parameters of blocks than a persona mask '
        'does, of this sparsity or this .pmask file.',
        path=True,
    )
    amount: float | None = flags.setting(
        None,
        'Instead of --match, the knob of the method: blocks to remove (depth), width '
        '(slicegpt), the ratio (llm_pruner, wanda_sp, minitron), or the share of the '
        "blocks' parameters that is left (adapt_pruner, flap, grasprune).",
        within='[0, 1000000]',
    )
    align: int = flags.setting(
        64, 'To which --match=SPARSITY rounds k, as python -m ppjax.train.', least=1
    )
    calibration: str | None = flags.setting(
        None,
        'JSONL of chats to go by, or demo:NAME; the loss is over answers.',
        path=True,
    )
    instructions: str | None = flags.setting(
        None,
        'Instead: general instructions and their answers, as for python -m ppjax.run, '
        'without a system message.',
        path=True,
    )
    text: str | None = flags.setting(
        None,
        'Instead: plain text, as authors take it: text files, whose documents are '
        'separated by empty lines, or JSONL rows with a "text".',
        path=True,
    )
    heldout: str | None = pruned_source.heldout_setting()
    sequences: int | None = flags.setting(
        None,
        "How many are drawn; by default as many as the method's authors take.",
        least=1,
    )
    sequence_length: int | None = flags.setting(
        None, 'Of --text, in tokens; by default theirs too.', least=2
    )
    criterion: str = flags.setting(
        'ppl',
        'Of depth: perplexity without a block, or its first-order change.',
        choices=depth.CRITERIA,
    )
    importance: str = flags.setting(
        'first',
        'Of llm_pruner: how the change of the loss is estimated.',
        choices=gradients.KINDS,
    )
    structure: str = flags.setting(
        'AL-AM',
        'Of flap: one threshold for all layers and heads, or the same share of each.',
        choices=STRUCTURES,
    )
    bias: bool | None = flags.setting(
        None,
        "Of flap: put what is removed on average into biases, which a Llama's weights "
        'alone can hold; by default where they can.',
    )
    rotation: str = flags.setting(
        'sites',
        'Of slicegpt: one for each site, in a model that this package alone loads, or '
        'a single one, in a stock model of a smaller hidden_size.',
        choices=ROTATIONS,
    )
    iterations: int = flags.setting(
        50, 'Of adapt_pruner: steps to a model of nothing.', least=1
    )
    amplitude: float = flags.setting(
        0.02,
        'Of adapt_pruner: how far ratios of blocks part in a step.',
        within='[0, 1]',
    )
    steps: int | None = flags.setting(
        None,
        'Of grasprune: of learning what to keep, each of --batch_size sequences (its '
        f'authors take 1); by default {grasprune.EPOCHS} times through all of them.',
        least=1,
    )
    gain_steps: int | None = flags.setting(
        None,
        'Of grasprune: of learning gains of what is kept, 0 for none; by default once '
        'through all sequences.',
        least=0,
    )
    learning_rate: float | None = flags.setting(
        None,
        f'Of grasprune: of both; by default {grasprune.LEARNING_RATE:g}.',
        within='(0, 1000]',
    )
    heads: bool = flags.setting(
        True,
        'Of wanda_sp, minitron, flap and grasprune: also remove heads, with their keys.',
    )
    spare_first: int | None = flags.setting(
        None, 'Blocks at the start that are left alone; 4 of depth and llm_pruner.'
    )
    spare_last: int | None = flags.setting(None, 'And at the end; 2 of these.')
    official: bool = flags.setting(
        False,
        "With what the authors' code does otherwise than their paper or than models "
        'with grouped queries want: the fold of heads (llm_pruner, adapt_pruner), the '
        'end below the target (adapt_pruner), embeddings less their mean (slicegpt).',
    )
    batch_size: int = flags.setting(
        8, 'Sequences that are run at a time.', within=order.BATCH_SIZES
    )
    print_budget: bool = flags.setting(
        False,
        'Only print what every method would keep for --match, from the config.json of '
        '--base_model alone.',
    )
    amounts: str | None = flags.setting(
        None,
        'Of --print_budget, also with these: METHOD=AMOUNT with commas between them, '
        'as in depth=4,slicegpt=2240,llm_pruner=0.22.',
    )
    prompt_length: float = flags.setting(
        # With which the dense model's 1.458 TFLOP of the paper's Table 11 come out.
        254.7,
        'Of --print_budget: tokens of a prompt whose FLOPs are counted.',
        within='(0, 100000000]',
    )
    export_dtype: str | None = options.export_dtype_setting()
    verify: bool = options.verify_setting(True)
    verify_tolerance: float = options.verify_tolerance_setting()

    def __post_init__(self) -> None:
        settings.require_given(self, 'base_model')
        ranges.check(self)
        if self.print_budget:
            settings.require_given(self, 'match')
            self.named_amounts()
            return
        settings.require_given(self, 'method', 'output_dir')
        if (self.match is None) == (self.amount is None):
            raise errors.InputError('Say how much to remove: --match or --amount.')
        given = (self.calibration, self.instructions, self.text)
        if sum(map(bool, given)) != 1:
            raise errors.InputError(
                'Name texts to go by with one of --calibration, --instructions and '
                '--text.'
            )
        if self.sequence_length is not None and not self.text:
            raise errors.InputError('--sequence_length is of --text; see --max_length.')
        self._refuse_of_others()

    def _refuse_of_others(self) -> None:
        """Raises:
        InputError: for a setting that is another method's.
        """
        owners = {
            'criterion': ('depth',),
            'importance': ('llm_pruner',),
            'structure': ('flap',),
            'bias': ('flap',),
            'rotation': ('slicegpt',),
            'iterations': ('adapt_pruner',),
            'amplitude': ('adapt_pruner',),
            'steps': ('grasprune',),
            'gain_steps': ('grasprune',),
            'learning_rate': ('grasprune',),
            'heads': ('wanda_sp', 'minitron', 'flap', 'grasprune'),
            'spare_first': _SPARING,
            'spare_last': _SPARING,
            'official': ('llm_pruner', 'adapt_pruner', 'slicegpt'),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            own = owners.get(field.name, (self.method,))
            if self.method not in own and value != field.default:
                raise errors.InputError(
                    f'--{field.name} is of --method={" or ".join(own)}, not of '
                    f'{self.method}.'
                )

    @property
    def usual(self) -> Usual:
        """What the method takes."""
        return self.usual_of(self.method)

    def usual_of(self, method: str) -> Usual:
        """A method's defaults, with what flags say in their place."""
        found = METHODS[method]
        given = {
            'sequences': self.sequences,
            'tokens': self.sequence_length,
            'spare_first': self.spare_first,
            'spare_last': self.spare_last,
        }
        return found._replace(**{k: v for k, v in given.items() if v is not None})

    @property
    def rows(self) -> int:
        """Sequences that are run at a time; gradients of each are squared alone."""
        return 1 if self.importance in ('second', 'mix') else self.batch_size

    def named_amounts(self) -> list[tuple[str, float]]:
        """What --amounts names.

        Raises:
            InputError: if something in it is none.
        """
        found = []
        for part in self.amounts.split(',') if self.amounts else ():
            method, _, amount = part.strip().partition('=')
            try:
                number = float(amount)
            except ValueError:
                number = -1.0
            if method not in _COUNTED or not 0 <= number < 10**6:
                raise errors.InputError(
                    f'--amounts: {part.strip()!r} is not METHOD=AMOUNT of '
                    f'{", ".join(_COUNTED)}.'
                )
            found.append((method, number))
        return found

    def keeps(self, d_ff: int) -> list[tuple[str, int]]:
        """What --match asks for: (as it was written, k), one or several.

        Raises:
            InputError: if it is none, or several where one is wanted.
        """
        assert self.match is not None
        found = []
        for part in self.match.split(','):
            try:
                sparsity = float(part)
            except ValueError:
                raise errors.InputError(
                    f'--match must be a sparsity or a .pmask file, got {part!r}.'
                ) from None
            if not 0 <= sparsity < 1:
                raise errors.InputError(f'--match must be in [0, 1), got {part}.')
            found.append((part.strip(), topk.keep_size(d_ff, sparsity, self.align)))
        if len(found) > 1 and not self.print_budget:
            raise errors.InputError('--match must be one, but for --print_budget.')
        return found

    @property
    def match_file(self) -> pathlib.Path | None:
        """The mask file that --match names, if it does."""
        if self.match is None or not self.match.endswith('.pmask'):
            return None
        return pathlib.Path(self.match)


# What may change between two calls on one run directory without making another run.
RESUMABLE = frozenset(
    {
        'output_dir',
        'overwrite',
        'mesh',
        'print_budget',
        'amounts',
        'prompt_length',
        'verify',
        'verify_tolerance',
    }
)

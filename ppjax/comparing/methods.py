"""The methods that are compared, and the ways to recover what they leave."""

import dataclasses
from typing import NamedTuple

from ppjax.base import errors
from ppjax.baselines import config as prune_config

DENSE = 'dense'
RECOVERIES = ('lora', 'full', 'gains', 'neeko')
# Of all personas together: a block of adapters each.
NEEKO = 'neeko'


class Method(NamedTuple):
    """How a small model is made.

    Attributes:
        label: in tables.
        steps: of the mask: all that are asked for (None), or none (0).
        mask: whether one is made.
        refit: whether rows of `down_proj` are refitted.
        rival: whether it is one of `ppjax.baselines`.
    """

    label: str
    steps: int | None = None
    mask: bool = False
    refit: bool = False
    rival: bool = False


# Ours, then others', as tables have them.
METHODS = {
    DENSE: Method('Dense'),
    'depth': Method('Depth pruning', rival=True),
    'slicegpt': Method('SliceGPT', rival=True),
    'llm_pruner': Method('LLM-Pruner', rival=True),
    'adapt_pruner': Method('Adapt-Pruner', rival=True),
    'wanda_sp': Method('Wanda-sp', rival=True),
    'flap': Method('FLAP', rival=True),
    'minitron': Method('Minitron', rival=True),
    'grasprune': Method('GRASPrune', rival=True),
    'one_shot': Method('One-shot mask', steps=0, mask=True),
    'mask': Method('Persona-Pruner', mask=True),
    'ridge': Method('Refit', refit=True),
    'mask+ridge': Method('Persona-Pruner, refit', mask=True, refit=True),
}
assert METHODS.keys() >= prune_config.METHODS.keys()


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What is finetuned after pruning.

    Attributes:
        texts: what it learns from: general or persona.
        how: lora, full, gains or neeko.
    """

    texts: str
    how: str

    @classmethod
    def parse(cls, text: str) -> 'Recovery':
        """Reads `none`, `general`, `persona:lora` and the like.

        Raises:
            InputError: if it is none of them.
        """
        texts, colon, how = text.partition(':')
        if text == 'none':
            return cls('', '')
        if texts not in ('general', 'persona') or (colon and how not in RECOVERIES):
            raise errors.InputError(
                f'--grid: unknown recovery {text!r}. Wanted none, or general or '
                f'persona, and perhaps how: {", ".join(RECOVERIES)}, as in '
                'persona:lora.'
            )
        if how == NEEKO and texts == 'general':
            raise errors.InputError(
                f'--grid: recovery {text!r}: neeko has a block for each persona, and '
                'general rows have none; wanted persona:neeko.'
            )
        return cls(texts, how or RECOVERIES[0])

    @property
    def label(self) -> str:
        """For tables."""
        if not self.texts:
            return ''
        if self.how == NEEKO:
            return 'Neeko on the rows of all personas'
        hows = {'lora': 'LoRA', 'full': 'all weights', 'gains': 'gains'}
        return f'{hows[self.how]} on {self.texts} rows'

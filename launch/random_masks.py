"""Writes mask files of random channels, to try how many personas a server takes.

    python launch/random_masks.py --base_model=DIR --count=100 --output_dir=runs/crowd

Each has a persona prompt of its own, of about the paper's length. What they answer is
noise; what they cost in memory and time is what learned ones cost.
"""

import dataclasses
import hashlib
import pathlib

import numpy as np

from ppjax.base import flags, progress, ranges, settings
from ppjax.masking import granularity, pmask
from ppjax.models import base_model
from ppjax.personas import prompts, sources

_FIRST = ('Ada', 'Bram', 'Cora', 'Dirk', 'Edda', 'Falk', 'Gesa', 'Henk', 'Ilse', 'Jorn')
_TRADES = ('ferryman', 'miller', 'smith', 'weaver', 'potter', 'shepherd', 'baker')


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which masks, and where they go."""

    base_model: str = flags.setting(
        None, 'The base model, as for python -m ppjax.train.', path=True
    )
    output_dir: str = flags.setting(None, 'Folder for the mask files.', path=True)
    count: int = flags.setting(100, 'How many.', least=1)
    sparsity: float = flags.setting(
        0.25, 'Share of channels that each removes.', within='(0, 1)'
    )
    seed: int = flags.setting(0, 'Fixes the channels.')

    def __post_init__(self) -> None:
        settings.require_given(self, 'base_model', 'output_dir')
        ranges.check(self)


def main(cfg: Settings) -> int:
    """Writes them."""
    base = base_model.open_base_model(cfg.base_model)
    fingerprint = base.fingerprint()
    folder = pathlib.Path(cfg.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    shape = (base.config.num_layers, base.config.d_ff)
    keep = round((1 - cfg.sparsity) * base.config.d_ff)
    texts = [persona.text for persona in sources.shipped_references()]
    for number in range(cfg.count):
        rng = np.random.default_rng([cfg.seed, number])
        mask = rng.random(shape).argsort(axis=1) < keep
        name = _FIRST[number % len(_FIRST)]
        trade = _TRADES[number // len(_FIRST) % len(_TRADES)]
        text = f'{name}, {trade} number {number}. {texts[number % len(texts)]}'
        prompt = prompts.persona_prompt(text)
        pmask.save(
            folder / f'{name.lower()}-{number:04}.pmask',
            pmask.PersonaMask(
                mask,
                base.name,
                fingerprint,
                hashlib.sha256(prompt.encode()).hexdigest(),
                prompt,
                granularity.CHANNELS.name,
            ),
        )
    progress.say(f'{cfg.count} masks: {folder}')
    return 0


if __name__ == '__main__':
    flags.run(Settings, main)

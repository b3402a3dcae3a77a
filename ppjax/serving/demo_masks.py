"""Masks of the quickstart's personas, made at once: what `--demo` serves.

No mask of theirs ships, for one is of one base model alone. These are the start of mask
learning and nothing more: the channels that add least to the residual stream on a few of
a persona's answers are left out. They show a cast at work, and are no measure of what
learned masks are like. Of SmolLM2-135M, six of the ferryman's held-out answers have 4.26
nats a token dense, 4.38 with his mask, and 4.62 at 25%.
"""

import hashlib
import os
import pathlib

import jax
import numpy as np

from ppjax import demo
from ppjax.base import errors, settings
from ppjax.base import progress as progress_lib
from ppjax.data import chat
from ppjax.masking import pmask, topk
from ppjax.models import base_model as base_lib
from ppjax.models import decoder as decoder_lib
from ppjax.training import starts

# At 25% a model of 135M parameters, cut at once, repeats its prompt.
SPARSITY = 0.1
# Enough for a start, and seconds: all of a persona's take twelve times as long.
_EXAMPLES = 8
_VARIABLE, _DEFAULT = 'XDG_CACHE_HOME', '~/.cache'


def folder_of(base: base_lib.BaseModel) -> pathlib.Path:
    """Where the masks of a base model are kept from one start to the next."""
    root = pathlib.Path(os.environ.get(_VARIABLE) or _DEFAULT).expanduser()
    return root / 'ppjax' / 'demo' / base.fingerprint()[:16]


def make(
    base: base_lib.BaseModel,
    decoder: decoder_lib.Decoder,
    folder: pathlib.Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Makes NAME.pmask for each of the personas that has none there.

    Args:
        base: that the masks are of.
        decoder: its weights.
        folder: for the masks; made if absent.
        mesh: the devices of the decoder; None for one.

    Raises:
        InputError: if the base has no chat template, or the folder cannot be written.
    """
    missing = [name for name in demo.personas() if not _is_there(base, folder, name)]
    if not missing:
        return
    progress_lib.say(
        f'Making masks of {", ".join(missing)} at {SPARSITY:.0%}, from activations '
        f'alone; they are kept in {folder}.'
    )
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=settings.DATE, vocab_size=base.config.vocab_size
    )
    rows = {name: demo.rows(name, 'train')[:_EXAMPLES] for name in missing}
    sets = [[renderer.example(row) for row in rows[name]] for name in missing]
    keep = topk.keep_size(base.config.d_ff, SPARSITY, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.DiskError(f'Cannot make {folder}: {error.strerror}.') from None
    for name, start in zip(
        missing, starts.Starts.of_personas(sets, seed=0, mesh=mesh), strict=True
    ):
        mask = topk.topk_mask(start.activation(decoder), keep)
        prompt = rows[name][0].system_prompt
        pmask.save(
            folder / f'{name}.pmask',
            pmask.PersonaMask(
                mask=np.asarray(mask, bool),
                base_model=base.name,
                base_fingerprint=base.fingerprint(),
                persona_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
                system_prompt=prompt,
            ),
        )


def _is_there(base: base_lib.BaseModel, folder: pathlib.Path, name: str) -> bool:
    try:
        pmask.load_for(folder / f'{name}.pmask', base)
    except errors.InputError:
        return False
    return True

"""The files that make a cast: where they are, and what one of them is.

| in a folder | |
|---|---|
| `*.pmask` | a persona mask file |
| `*.png`, `*.apng`, `*.json`, `*.charx`, `*.jpg`, `*.jpeg` | a card that carries a mask |
| `*/mask.pmask` | the mask of a run, which is called as its folder |

What begins with a dot is passed over.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import stat
from typing import NamedTuple
import zipfile

import numpy as np

from ppjax.base import errors, reading
from ppjax.masking import card_masks, pmask
from ppjax.models import base_model as base_lib
from ppjax.models import masks as masks_lib
from ppjax.personas import card_output, cards, inputs, macros
from ppjax.serving import members, pictures

OF_RUN = 'mask.pmask'
_MASK = '.pmask'
_CARDS = ('.png', '.apng', '.json', '.charx')
# Pictures, unless a CHARX file stands behind them.
_PERHAPS = ('.jpg', '.jpeg')


class State(NamedTuple):
    """What tells that a file is another than before."""

    changed_ns: int
    touched_ns: int
    size: int
    inode: int


class Base(NamedTuple):
    """What a mask must be of.

    Attributes:
        fingerprint: of the base model.
        num_layers: L.
        d_ff: F.
    """

    fingerprint: str
    num_layers: int
    d_ff: int

    @classmethod
    def of(cls, base: base_lib.BaseModel) -> 'Base':
        """Reads a little of every tensor."""
        return cls(base.fingerprint(), base.config.num_layers, base.config.d_ff)


def scan(folder: pathlib.Path) -> dict[pathlib.Path, State]:
    """The files of a folder that may be of the cast; none is opened.

    Raises:
        InputError: if the folder cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise errors.InputError(
            f'Cannot list the personas in {inputs.shown(folder)}: {reason}; give a '
            'folder of .pmask files and character cards.'
        ) from None
    return dict(_states(folder, names))


def _states(
    folder: pathlib.Path, names: list[str]
) -> Iterator[tuple[pathlib.Path, State]]:
    for name in names:
        if name.startswith('.'):
            continue
        path = folder / name
        # What goes away meanwhile, or leads nowhere, is not there.
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                path = path / OF_RUN
                status = os.stat(path)
            elif path.suffix.lower() not in (_MASK, *_CARDS, *_PERHAPS):
                continue
            if stat.S_ISREG(status.st_mode):
                yield (
                    path,
                    State(
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                        status.st_size,
                        status.st_ino,
                    ),
                )


def names_of(path: pathlib.Path) -> tuple[str, str]:
    """What a file's persona is called: in short, and where that is not enough."""
    if path.name == OF_RUN:
        # The name that it was given here, wherever it leads.
        name = os.path.basename(os.path.abspath(path.parent))
        return _plain(name), _plain(name)
    return _plain(path.stem), _plain(path.name)


def _plain(name: str) -> str:
    """A model id that stays in its line, its address and its log."""
    kept = ''.join(c if c.isprintable() and c not in '/\\' else '_' for c in name)
    return kept.strip().strip('.') or '_'


def _is_card(path: pathlib.Path) -> bool:
    data = reading.read_bytes(path, 'Character card')
    return cards.is_card(inputs.parse_json(data, inputs.shown(path)))


def read(
    path: pathlib.Path, base: Base, *, user_name: str = macros.DEFAULT_USER_NAME
) -> members.Member | None:
    """The persona of a file, under the short one of its names.

    Args:
        path: of the file.
        base: that its mask must be of.
        user_name: for `{{user}}` in a card.

    Returns:
        None for a file of JSON, or a photograph, that is no card.

    Raises:
        InputError: if it is damaged, of another base, carries no mask, or masks whole
            blocks.
    """
    persona = picture = None
    if (suffix := path.suffix.lower()) != _MASK:
        if suffix in _PERHAPS and not zipfile.is_zipfile(path):
            return None
        if suffix == '.json' and not _is_card(path):
            return None
        value = card_output.read(path)
        # Says so where there is no mask.
        card_masks.content(path)
        persona = cards.to_persona(value, inputs.shown(path), user_name=user_name)
        picture = pictures.of_card(path, value)
    mask = pmask.load(path)
    if mask.granularity != pmask.CHANNELS:
        raise errors.InputError(
            f'{path} masks whole {mask.granularity}: what shares a batch runs the same '
            'ones. Export it, and serve it by itself.'
        )
    mask.check_base(*base)
    scale = mask.scaled().astype(np.float16) if mask.has_gains else mask.chosen
    scale.setflags(write=False)
    return members.Member(
        name=names_of(path)[0],
        digest=masks_lib.Masks(channels=scale).digest(),
        scale=scale,
        sparsity=1 - mask.total / mask.mask.size,
        system_prompt=mask.system_prompt or (persona.system_prompt if persona else ''),
        persona=persona,
        picture=picture,
        source=path,
        created=int(os.stat(path).st_mtime),
    )

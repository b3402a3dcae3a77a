"""Mask files as users name them: files, runs, folders of either, globs."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import glob
import hashlib
import os
import pathlib
import re

from ppjax.base import errors, ranges, reading
from ppjax.base import progress as progress_lib
from ppjax.masking import pmask
from ppjax.training import trained_run

_SUFFIX = '.pmask'
_OF_RUN = 'mask.pmask'
# Below a folder that is no run: loose files, runs, and the runs of a sweep and of
# several personas.
_IN_FOLDER = (f'*{_SUFFIX}', *(f'{x}*/{_OF_RUN}' for x in ('', 'cells/', 'personas/')))
# As in `jack-seed0.pmask`, or a folder `seed_0`.
_SEED = re.compile(r'(?:^|[-_. ])seed[-_ ]?(\d+)$', re.ASCII | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class SourceMask:
    """A mask and what is known of where it comes from.

    Attributes:
        path: of its file.
        mask: what that says.
        seed: that it was learned with; None where neither a run nor a name tells.
        sha256: of the file's content.
    """

    path: pathlib.Path
    mask: pmask.PersonaMask
    seed: int | None
    sha256: str

    @property
    def persona(self) -> str:
        """What masks of one persona have in common; its path if it is of none."""
        return self.mask.persona_sha256 or str(self.path)


def read(text: str, *, sparsity: float | None = None) -> list[SourceMask]:
    """Reads the masks that `--masks` names, each once, in its order.

    Args:
        text: of the flag.
        sparsity: of masks that have several; None for the one they name.

    Raises:
        InputError: if one is absent, damaged or has no such sparsity, or a folder
            has none.
    """
    paths = dict.fromkeys(path for part in _parts(text) for path in _files(part))
    found = []
    for path in paths:
        content = reading.read_bytes(path, 'Mask file')
        mask = pmask.load(path)
        if sparsity is not None:
            try:
                mask = mask.at_sparsity(sparsity)
            except errors.InputError as error:
                raise errors.InputError(f'{path}: {error}') from None
        sha256 = hashlib.sha256(content).hexdigest()
        found.append(SourceMask(path, mask, _seed(path), sha256))
    return found


def _parts(text: str) -> Iterator[str]:
    parts = [part.strip() for part in text.split(',')]
    if not all(parts):
        raise errors.InputError(f'--masks must name files and folders, got {text!r}.')
    yield from parts


def _files(name: str) -> list[pathlib.Path]:
    """The mask files that one part of the flag names."""
    # Not pathlib's, which raises for a name that no file can have.
    name = os.path.expanduser(name)
    path = pathlib.Path(name)
    if os.path.exists(name) or not glob.has_magic(name):
        if found := _of_path(path):
            return found
        raise errors.InputError(
            f'--masks: {path} holds no mask: no {_OF_RUN} of its own, no file that '
            f'ends in {_SUFFIX}, and no run with a mask.'
        )
    matches = sorted(map(pathlib.Path, glob.glob(name, recursive=True)))
    files = {match: _of_path(match) for match in matches}
    found = [file for own in files.values() for file in own]
    if not found:
        raise errors.InputError(f'--masks: no mask is called {name}.')
    if empty := [str(match) for match, own in files.items() if not own]:
        progress_lib.say(f'Passed over, as they hold no mask: {", ".join(empty)}.')
    return found


def _of_path(path: pathlib.Path) -> list[pathlib.Path]:
    """The file itself, or a folder's masks, which may be none."""
    if not os.path.isdir(path):
        return [path.resolve()]
    if (path / _OF_RUN).is_file():
        return [(path / _OF_RUN).resolve()]
    found = [file for pattern in _IN_FOLDER for file in sorted(path.glob(pattern))]
    return [file.resolve() for file in found]


def _seed(path: pathlib.Path) -> int | None:
    """The seed that a run learned its mask with, or that its file or folder names."""
    name = path.stem
    if path.name == _OF_RUN:
        name = path.parent.name
        # A run of another verb took its mask over.
        with contextlib.suppress(errors.InputError):
            return trained_run.TrainedRun.open(path.parent).settings.seed
    found = _SEED.search(name)
    return ranges.whole(found[1]) if found else None


def check_alike(masks: Sequence[SourceMask]) -> None:
    """Refuses masks that are not of one base model and of one kind of unit.

    Raises:
        InputError: naming the first two files that differ.
    """
    first = masks[0]
    for other in masks[1:]:
        for what, own, theirs in (
            ('base models', _base(first), _base(other)),
            ('kinds of unit', first.mask.granularity, other.mask.granularity),
            ('sizes', first.mask.mask.shape, other.mask.mask.shape),
        ):
            if own != theirs:
                raise errors.InputError(
                    f'--masks are of different {what}: {first.path} of '
                    f'{_text(first, own)}, {other.path} of {_text(other, theirs)}.'
                )


def _base(source: SourceMask) -> str:
    return source.mask.base_fingerprint


def _text(source: SourceMask, value: object) -> str:
    if value == _base(source):
        return f'{source.mask.base_model} ({str(value)[:12]})'
    return str(value)

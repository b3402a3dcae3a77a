"""Orbax checkpoints of the training state."""

from collections.abc import Iterator
import contextlib
import functools
import logging
import os
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from ppjax.base import errors, processes
from ppjax.base import progress as progress_lib

State = TypeVar('State')

# What a run's checkpoints are, for its marker.
FILES = 'checkpoints/[0-9]*'


@contextlib.contextmanager
def _as_disk_error() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise errors.DiskError(
            'A checkpoint could not be saved: '
            f'{(str(error).splitlines() or [""])[0]}; the same command goes on from '
            'the one before.'
        ) from error


class Checkpoints:
    """Numbered checkpoints; one that was cut short is never picked up."""

    def __init__(self, run: pathlib.Path, *, keep: int = 2):
        """Args:
        run: the run directory.
        keep: how many stay.
        """
        logging.getLogger('absl').addFilter(_is_not_raised)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._path = (run / 'checkpoints').absolute()
        with _as_disk_error():
            # Without a handler Orbax takes the newest folder, damaged or not, for what
            # all of them look like.
            self._manager = ocp.CheckpointManager(
                self._path,
                options=options,
                item_handlers=ocp.StandardCheckpointHandler(),
            )

    @_as_disk_error()
    def save(self, step: int, state: Any) -> None:
        """Saves in the background.

        Raises:
            DiskError: if an earlier save failed, for instance on a full disk.
        """
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def newest(self, like: State) -> tuple[int, State | None]:
        """The newest checkpoint that can be read; newer ones are put aside.

        Args:
            like: structure, shapes and placement of the state, as arrays or without.

        Returns:
            (step, state), or (0, None) if there is none.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = None, ''
            try:
                state = self._manager.restore(
                    step, args=ocp.args.StandardRestore(abstract)
                )
            # What Orbax and TensorStore make of files that are cut or missing.
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                reason = (str(error).splitlines() or [repr(error)])[0][:200]
            if processes.everywhere(state is not None):
                return step, state
            progress_lib.say(
                f'Checkpoint {self._path / str(step)} is damaged or of another version '
                f'({reason or "another process cannot read it"}); it was put aside as '
                f'{_aside(step)}, going on from the one before.'
            )
            processes.first_decides(functools.partial(self._put_aside, step))
            self._manager.reload()
        return 0, None

    def _put_aside(self, step: int) -> None:
        # Not removed: what another version wrote, or a disk fails to give, is whole.
        aside = self._path / _aside(step)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self._path / str(step), aside)

    @_as_disk_error()
    def wait(self) -> None:
        """Returns once all saves are on disk.

        Raises:
            DiskError: if one failed.
        """
        self._manager.wait_until_finished()

    @_as_disk_error()
    def close(self) -> None:
        """Waits and releases the manager's threads.

        Raises:
            DiskError: if a save failed.
        """
        self._manager.close()


def _is_not_raised(record: logging.LogRecord) -> bool:
    """False of what Orbax logs of an error, whole, that it also raises here."""
    return not (record.exc_info and '/orbax/' in record.pathname)


def _aside(step: int) -> str:
    return f'{step}.damaged'

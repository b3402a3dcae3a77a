"""Orbax checkpoints of the training state."""

import pathlib
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from ppjax.base import errors

State = TypeVar('State')


class Checkpoints:
    """Numbered checkpoints; one that was cut short is never picked up."""

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            pathlib.Path(directory).absolute(), options=options
        )

    def save(self, step: int, state: Any) -> None:
        """Saves in the background.

        Raises:
            InputError: if an earlier save failed, for instance on a full disk.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except (OSError, ValueError) as error:
            raise _failed(error) from error

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def restore(self, step: int, like: State) -> State:
        """Restores into the structure, shapes and placement of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def wait(self) -> None:
        """Returns once all saves are on disk.

        Raises:
            InputError: if one failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.close()


def _failed(error: Exception) -> errors.InputError:
    return errors.InputError(
        f'A checkpoint could not be saved: {str(error).splitlines()[0]}; the same '
        'command goes on from the one before.'
    )

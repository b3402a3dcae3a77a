"""What model cards tell of settings and commands: not whose machine it was."""

from collections.abc import Collection
import dataclasses
import pathlib
import shlex
from typing import Any

from ppjax.base import flags


def _publishable(settings: Any) -> Any:
    shorter = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and value.startswith(('/', '~')):
            shorter[field.name] = pathlib.PurePath(value).name or value
    return dataclasses.replace(settings, **shorter)


def settings_text(settings: Any, omit: Collection[str] = ()) -> str:
    """Settings as a flagfile, without folders of this machine.

    Args:
        settings: the dataclass of flags.
        omit: names of those to leave out.
    """
    return flags.to_flagfile(_publishable(settings), omit=tuple(omit))


def command(verb: str, settings: Any) -> str:
    """The call of a verb that settings come from."""
    shown = _publishable(settings)
    given = []
    for field in dataclasses.fields(shown):
        value = getattr(shown, field.name)
        if value != field.default:
            given.append(f'--{field.name}' + ('' if value is True else f'={value}'))
    return shlex.join(['python', '-m', f'ppjax.{verb}', *given])

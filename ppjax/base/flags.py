"""Command-line flags from a frozen dataclass, and the frame of every verb.

Each field carries its type, default and help, and `__post_init__` rejects bad
values, so a verb's settings are defined, documented and checked in one place.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
import types
from typing import Any, TypeVar, get_args, get_type_hints

from absl import app, flags, logging

from ppjax.base import errors, input_files, processes

Settings = TypeVar('Settings')

_MAX_FLAGFILE = 2**20

_DEFINERS: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def setting(
    default: Any, help_text: str, choices: Sequence[str] = (), *, path: bool = False
) -> Any:
    """A dataclass field that becomes a flag.

    Args:
        default: the flag's default; None means not given.
        help_text: for `--help`.
        choices: the allowed strings, if only some are.
        path: whether it may name files, with commas between them: a shell leaves the
            `~` of `--flag=~/file` alone, so it is read as home here.
    """
    return dataclasses.field(
        default=default,
        metadata={'help': help_text, 'choices': tuple(choices), 'path': path},
    )


@dataclasses.dataclass(frozen=True)
class _Processes:
    """Flags of verbs that several processes can run together; of no run's settings."""

    coordinator: str | None = setting(
        None,
        'Of several processes that run this together: HOST:PORT of the first, the same '
        'for all, or auto on a TPU pod, under Slurm, Kubernetes or MPI.',
    )
    num_processes: int | None = setting(None, 'With HOST:PORT: how many there are.')
    process_id: int | None = setting(
        None, 'With HOST:PORT: which this one is, from 0 on.'
    )


def define(settings: type[Any], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for every field; `--help` lists them."""
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name, default = field.name, field.default
        help_text, choices = field.metadata['help'], field.metadata['choices']
        kind = hints[name]
        if isinstance(kind, types.UnionType):  # `int | None` -> int
            (kind,) = (part for part in get_args(kind) if part is not type(None))
        definer = _DEFINERS[kind]
        if choices:
            definer = functools.partial(flags.DEFINE_enum, enum_values=choices)
        definer(name=name, default=default, help=help_text, flag_values=flag_values)
        flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])


def _settings_of(settings: type[Settings], flag_values: flags.FlagValues) -> Settings:
    values = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = flag_values[field.name].value
        if field.metadata['path'] and value:
            value = ','.join(map(os.path.expanduser, value.split(',')))
        values[field.name] = value
    return settings(**values)


def to_flagfile(settings: Any, omit: Sequence[str] = ()) -> str:
    """Settings, but for those to omit, as text that `--flagfile` reads back.

    Raises:
        InputError: for text that a flagfile cannot hold.
    """
    lines = []
    for field in dataclasses.fields(settings):
        if field.name in omit:
            continue
        value = getattr(settings, field.name)
        if isinstance(value, bool):
            lines.append(f'--{"" if value else "no"}{field.name}')
        elif value is not None:
            text = str(value)
            # absl reads one flag a line and strips it, with no way to quote.
            if text != text.strip() or '\n' in text or '\r' in text:
                raise errors.InputError(
                    f'--{field.name} must be one line without outer spaces, got '
                    f'{text!r}; put longer text into a file.'
                )
            lines.append(f'--{field.name}={text}')
    return '\n'.join(lines) + '\n'


def _check_flagfiles(argv: Sequence[str], seen: frozenset[str] = frozenset()) -> None:
    """Reads flagfiles, and those that they name, before absl opens them.

    Raises:
        InputError: for one that is no readable text.
    """
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=''):
        name, equals, path = argument.strip().partition('=')
        if name not in ('--flagfile', '-flagfile'):
            continue
        path = os.path.expanduser((path if equals else following).strip())
        # absl passes over a file that names itself.
        if path and path not in seen:
            text = input_files.read_text(path, 'Flag file', limit=_MAX_FLAGFILE)
            _check_flagfiles(text.splitlines(), seen | {path})


def parse(settings: type[Settings], argv: Sequence[str]) -> Settings:
    """Reads flags without touching the process's own.

    Raises:
        InputError: for an unknown flag, a bad value, or what is no flag.
    """
    own = flags.FlagValues()
    define(settings, own)
    flags.DEFINE_string('flagfile', '', '', flag_values=own)
    _check_flagfiles(argv)
    try:
        _, *rest = own(['ppjax', *argv])
    except flags.Error as error:
        raise errors.InputError(str(error)) from None
    if rest:
        raise errors.InputError(f'{rest[0]!r} is no flag; wanted --name=value.')
    return _settings_of(settings, own)


def from_flagfile(settings: type[Settings], path: str | pathlib.Path) -> Settings:
    """Reads a flagfile without touching the process's own flags.

    Raises:
        InputError: if the file is absent, or holds other flags or bad values.
    """
    input_files.check(path, 'Flag file')
    try:
        return parse(settings, [f'--flagfile={path}'])
    except errors.InputError as error:
        raise errors.InputError(f'{path}: {error}') from None


def run(
    settings: type[Settings],
    verb: Callable[..., int | None],
    *,
    what: Sequence[str] = (),
    joined: bool = False,
    saves: bool = False,
) -> None:
    """The whole of a verb's `__main__`: parse, check, do, exit.

    Exit codes: 0 done, 1 failed (one line on stderr), 2 wrong usage.

    Args:
        settings: the dataclass of the verb's flags.
        verb: called with the settings, and with the word after the verb if there is
            a choice of them.
        what: those words, one of which must then be given.
        joined: whether several processes may run the verb together.
        saves: whether they save and stop when told by SIGTERM, which else ends them.
    """
    define(settings)
    if joined:
        define(_Processes)

    def wrong_usage(message: object) -> int:
        # A module, or one of the scripts in launch/.
        spec = sys.modules['__main__'].__spec__
        program = f'-m {spec.name}' if spec else sys.argv[0]
        print(f'ERROR: {message}\nSee: python {program} --help', file=sys.stderr)
        return 2

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            _check_flagfiles(argv)
            return flags.FLAGS(argv)
        except (flags.Error, errors.InputError) as error:
            sys.exit(wrong_usage(error))

    def main(argv: Sequence[str]) -> int:
        words = argv[1:]
        if what and (len(words) != 1 or words[0] not in what):
            listed = f'{", ".join(what[:-1])} or {what[-1]}'
            return wrong_usage(
                f'Say which: {listed}; got {" ".join(words) or "nothing"}.'
            )
        if words and not what:
            return wrong_usage(f'Unexpected arguments: {" ".join(words)}.')
        try:
            parsed = _settings_of(settings, flags.FLAGS)
        except errors.InputError as error:
            return wrong_usage(error)
        # Libraries narrate through absl; what people should read we print.
        logging.set_verbosity(logging.WARNING)
        code = _outcome(
            functools.partial(verb, parsed, *words), joined=joined, saves=saves
        )
        if code:
            processes.leave(code)
        return code

    app.run(main, flags_parser=parse)


def _outcome(verb: Callable[[], int | None], *, joined: bool, saves: bool) -> int:
    """Runs a verb, together with other processes if the flags name some.

    Returns:
        Its exit code; what went wrong has been said.
    """
    try:
        if joined:
            own = _settings_of(_Processes, flags.FLAGS)
            processes.start(
                own.coordinator, own.num_processes, own.process_id, saves=saves
            )
        return verb() or 0
    except errors.InputError as error:
        print(f'ERROR: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130
    except RuntimeError as error:
        # XLA's, from inside a collective.
        if processes.count() == 1:
            raise
        print(
            f'ERROR: process {processes.index()} of {processes.count()} stopped: '
            f'{(str(error).splitlines() or [repr(error)])[0]}\n'
            'If another process ended before, its output says why. The same command '
            'goes on from what is saved.',
            file=sys.stderr,
        )
        return 1

"""Command-line flags from a frozen dataclass, and the frame of every verb.

Each field carries its type, default and help, and `__post_init__` rejects bad
values, so a verb's settings are defined, documented and checked in one place.
"""

from collections.abc import Callable, Sequence
import dataclasses
import errno
import functools
import io
import os
import pathlib
import select
import sys
from typing import Any, TypeVar, get_type_hints

from absl import app, flags, logging

from ppjax.base import atomic, errors, interrupts, processes, ranges, reading

Settings = TypeVar('Settings')

# As of a program that SIGPIPE ends.
_NO_READER = 141

_DEFINERS: dict[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def setting(
    default: Any,
    help_text: str,
    choices: Sequence[str] = (),
    *,
    may_be_empty: bool = False,
    path: bool = False,
    writes: bool = False,
    within: str = '',
    least: int | None = None,
) -> Any:
    """A dataclass field that becomes a flag.

    Args:
        default: the flag's default; None means not given.
        help_text: for `--help`.
        choices: the allowed strings, if only some are.
        may_be_empty: whether '' means something.
        path: whether it may name files, with commas between them: a shell leaves the
            `~` of `--flag=~/file` alone, so it is read as home here.
        writes: whether it is the path of a file that is written in the end; one that
            cannot be is refused before the work.
        within: the allowed numbers, as in '[0, 1)'; a float must have it.
        least: the least allowed number, where there is no other bound.
    """
    metadata = {
        'help': help_text,
        'choices': tuple(choices),
        'may_be_empty': may_be_empty,
        'path': path or writes,
        'writes': writes,
        'within': within,
        'least': least,
    }
    return dataclasses.field(default=default, metadata=metadata)


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
        definer = _DEFINERS[ranges.kind_of(hints[name])]
        if choices:
            definer = functools.partial(flags.DEFINE_enum, enum_values=choices)
        definer(name=name, default=default, help=help_text, flag_values=flag_values)
        flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])


def _settings_of(settings: type[Settings], flag_values: flags.FlagValues) -> Settings:
    given: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        given[field.name] = value = flag_values[field.name].value
        if isinstance(value, str) and not field.metadata['may_be_empty']:
            _refuse_no_text(field.name, value)
        if value and field.metadata['path']:
            given[field.name] = ','.join(map(os.path.expanduser, value.split(',')))
        if value and field.metadata['writes']:
            _refuse_unwritable(field.name, pathlib.Path(given[field.name]))
    try:
        found = settings(**given)
    except OSError as error:
        # Settings look at what they name, which no file system may be able to name.
        raise errors.InputError(_of_flag(given, error)) from None
    ranges.check(found)
    return found


def _of_flag(given: dict[str, Any], error: OSError) -> str:
    """What is said of a name that could not be looked at, and whose it is."""
    name = str(error.filename)
    of = [flag for flag, text in given.items() if isinstance(text, str) and text]
    flag = next((f'--{x}: ' for x in of if given[x] in name or name in given[x]), '')
    return f'{flag}{name}: {error.strerror}.'


def _refuse_unwritable(name: str, path: pathlib.Path) -> None:
    """Refuses the path of a file that could not be written.

    Raises:
        InputError: naming the flag.
    """
    try:
        atomic.temporary_of(path).exists()
        reason = 'it is a folder' if path.is_dir() else None
    except OSError as error:
        reason = error.strerror
    else:
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            reason = f'{above} is no folder that can be written to'
    if reason:
        raise errors.InputError(f'--{name}: cannot write {path}: {reason}.')


def _refuse_no_text(name: str, value: str) -> None:
    """Refuses what neither a name nor a file of settings can hold.

    Raises:
        InputError: naming the flag.
    """
    if not value.strip():
        raise errors.InputError(f'--{name} is empty; leave it out, or say what.')
    # Bytes of an argument that are no UTF-8 arrive as halves of surrogate pairs.
    if '\0' in value or any('\ud800' <= c <= '\udfff' for c in value):
        raise errors.InputError(f'--{name} is no UTF-8 text, got {value!r}.')


def expanded(argv: Sequence[str], opened: tuple[str, ...] = ()) -> list[str]:
    """Arguments with the lines of every `--flagfile` in its place.

    absl would wait for a pipe, read a device for ever and pass over a file that
    includes itself. Lines that are blank or begin with # or // say nothing.

    Args:
        argv: without the program's name.
        opened: the flagfiles that these are lines of.

    Raises:
        InputError: naming a flagfile that is none, or includes itself.
    """
    given: list[str] = []
    words = iter(argv)
    for word in words:
        if word == '--':
            return [*given, word, *words]
        name, equals, path = word.partition('=')
        if name not in ('--flagfile', '-flagfile'):
            given.append(word)
            continue
        path = os.path.expanduser(path if equals else next(words, ''))
        if path in opened:
            raise errors.InputError(f'Flag file {path} includes itself.')
        data = reading.read_bytes(path, 'Flag file')
        try:
            text = data.decode('utf-8-sig')
        except UnicodeDecodeError as error:
            raise errors.InputError(f'{path}: not UTF-8 text ({error}).') from None
        # Not splitlines, to which more characters end a line than to `to_flagfile`.
        lines = [line.strip() for line in text.replace('\r', '\n').split('\n')]
        said = [line for line in lines if line and not line.startswith(('#', '//'))]
        given += expanded(said, (*opened, path))
    return given


def _parsed(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Reads arguments, the program's name first; what is no flag comes back."""
    program, *given = argv
    try:
        return flag_values([program, *expanded(given)])
    except flags.Error as error:
        raise errors.InputError(str(error)) from None
    except RecursionError:
        # absl looks for a name alike, by a recursion as deep as the name is long.
        raise errors.InputError(
            'Unknown command line flag: a name is far too long.'
        ) from None


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


def parse(settings: type[Settings], argv: Sequence[str]) -> Settings:
    """Reads flags without touching the process's own.

    Raises:
        InputError: for an unknown flag, a bad value, or what is no flag.
    """
    own = flags.FlagValues()
    define(settings, own)
    _, *rest = _parsed(own, ['ppjax', *argv])
    if rest:
        raise errors.InputError(f'{rest[0]!r} is no flag; wanted --name=value.')
    return _settings_of(settings, own)


def from_flagfile(settings: type[Settings], path: str | pathlib.Path) -> Settings:
    """Reads a flagfile without touching the process's own flags.

    Raises:
        InputError: if the file is absent, or holds other flags or bad values.
    """
    reading.require_file(path, 'Flag file')
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

    Exit codes: 0 done, 1 failed (one line on stderr), 2 wrong usage, 130 interrupted,
    141 nobody reads the output any more.

    Args:
        settings: the dataclass of the verb's flags.
        verb: called with the settings, and with the word after the verb if there is
            a choice of them.
        what: those words, one of which must then be given.
        joined: whether several processes may run the verb together.
        saves: whether they save and stop when told by SIGTERM, which else ends them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # One that cannot show a character is no reason to stop.
        sys.stdout.reconfigure(errors='replace')
    define(settings)
    if joined:
        define(_Processes)

    def wrong_usage(message: object) -> int:
        # A module, or one of the scripts in launch/.
        spec = sys.modules['__main__'].__spec__
        program = f'-m {spec.name}' if spec else sys.argv[0]
        said = errors.one_line(str(message))
        print(f'ERROR: {said}\nSee: python {program} --help', file=sys.stderr)
        return 2

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return _parsed(flags.FLAGS, argv)
        except errors.InputError as error:
            sys.exit(wrong_usage(error))
        except SystemExit:
            # Of --help, which absl calls a failure.
            sys.exit(0)

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

    try:
        try:
            app.run(main, flags_parser=parse)
        finally:
            print(end='', flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            code = _NO_READER
        elif error.errno == errno.ENOSPC and error.filename is None:
            print(f'ERROR: standard output: {error.strerror}.', file=sys.stderr)
            code = 1
        else:
            raise
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def _nobody_reads() -> bool:
    """Whether the reader of the output has left, as `| head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = select.POLLERR | select.POLLHUP
    return any(event & gone for _, event in poll.poll(0))


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
        interrupts.raise_again()
        return verb() or 0
    except errors.InputError as error:
        print(f'ERROR: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        # Readers and writers say more themselves.
        if error.filename is None:
            raise
        said = errors.one_line(f'{error.filename}: {error.strerror}')
        print(f'ERROR: {said}.', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupts.MESSAGE, file=sys.stderr)
        return interrupts.CODE
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
    finally:
        interrupts.end_at_once()

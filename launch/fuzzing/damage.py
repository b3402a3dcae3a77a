"""How whole inputs become bad ones: bytes, JSON values, files, words of a command."""

import copy
import json
import os
import pathlib
import random
import struct
from typing import Any

_TEXTS = (
    '',
    ' ',
    'abc',
    '-1',
    '1e400',
    'nan',
    'inf',
    '\ud800',
    'two\nlines',
    '\x1b[31mred\x07\x1b]0;title\x07',
    'line\u2028end\u202e',
    '{{user}}{{random:a,b}}',
    '<|im_end|>',
    '<think>',
    '{% for a in range(10**9) %}{% endfor %}',
    'x' * 100_000,
    'word ' * 20_000,
    '../../etc',
    '/dev/zero',
    'n' * 300,
    'd/' * 2_000,
)
_NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**32,
    2**63,
    2**64,
    10**6,
    10**9,
    10**400,
    1.5,
    -0.0,
    1e-308,
    1e308,
    float('nan'),
    float('inf'),
    float('-inf'),
)


def number(rng: random.Random) -> int | float:
    """A number that is small, huge, odd or none."""
    return rng.choice(_NUMBERS)


def text(rng: random.Random) -> str:
    """A text that is empty, long, no Unicode, markup or moves the cursor."""
    if rng.random() < 0.2:
        return ''.join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(40)))
    return rng.choice(_TEXTS)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return text(rng)
    if kind < 4:
        return number(rng)
    if kind == 4:
        return rng.choice([None, True, False, [], {}])
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {text(rng)[:40]: value(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested: Any = 1
    for _ in range(rng.choice([3, 500, 100_000])):
        nested = [nested]
    return nested


def json_value(rng: random.Random, whole: Any, times: int | None = None) -> Any:
    """A copy with values anywhere in it replaced, removed, doubled or added."""
    changed = copy.deepcopy(whole)
    for _ in range(rng.randint(1, 3) if times is None else times):
        changed = _changed(rng, changed)
    return changed


def _changed(rng: random.Random, whole: Any) -> Any:
    place = whole
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            place = inner
            continue
        kind = rng.randrange(6)
        if kind < 3:
            place[key] = value(rng)
        elif kind == 3:
            del place[key]
        elif kind == 4:
            # Too deep a value has no text.
            written = '[]' if isinstance(inner, dict | list) else str(inner)
            place[key] = rng.choice([[inner], {'a': inner}, written, [inner, inner]])
        elif isinstance(place, dict):
            place[text(rng)[:200]] = value(rng)
        else:
            place.append(value(rng))
        return whole
    return value(rng)


def dumped(rng: random.Random, whole: Any) -> bytes:
    """JSON as bytes; too deep a value as text that is as deep."""
    try:
        written = json.dumps(whole, ensure_ascii=rng.random() < 0.5)
    except (RecursionError, ValueError):
        written = '[' * 100_000
    return written.encode('utf-8', 'surrogatepass')


def data(rng: random.Random, whole: bytes) -> bytes:
    """Bytes cut, flipped, overwritten, doubled, removed or put in between."""
    changed = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        # Headers are where a changed byte is read.
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        at = rng.randrange(end) if end else 0
        kind = rng.randrange(8)
        if kind == 0:
            del changed[at:]
        elif kind == 1 and changed:
            changed[at] ^= rng.randrange(1, 256)
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 33)]
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 200)]
        elif kind == 5:
            size = rng.choice([4, 8])
            extreme = rng.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
            packed = struct.pack('<Q', extreme % 2 ** (8 * size))[:size]
            at -= at % rng.choice([1, 4])
            changed[at : at + size] = packed
        elif kind == 6:
            changed = bytearray(
                rng.choice([b'\xef\xbb\xbf', b'\xff\xfe', b'\0', b'PK\x03\x04'])
                + changed
            )
        else:
            changed += rng.choice([b'\0' * 64, b'\n{', b'\n[]\n', rng.randbytes(20)])
    return bytes(changed)


def file(rng: random.Random, path: pathlib.Path) -> None:
    """Makes a file something else than a file, or nothing."""
    whole = path.read_bytes() if path.is_file() else b''
    if path.exists():
        path.unlink()
    kind = rng.randrange(9)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(rng.choice(['/dev/zero', '/dev/random', '/dev/full']))
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.write_bytes(b'')
    elif kind == 5:
        path.write_bytes(rng.randbytes(rng.randrange(1, 3_000)))
    elif kind == 6:
        path.write_bytes(whole.decode('utf-8', 'replace').encode('utf-16'))
    elif kind == 7:
        path.write_bytes(b'[' * 200_000)


def json_file(rng: random.Random, path: pathlib.Path) -> None:
    """Spoils a file of one JSON value."""
    if rng.random() < 0.12:
        file(rng, path)
    elif rng.random() < 0.15:
        path.write_bytes(data(rng, path.read_bytes()))
    else:
        whole = json.loads(path.read_bytes())
        path.write_bytes(dumped(rng, json_value(rng, whole)))


def lines_file(rng: random.Random, path: pathlib.Path) -> None:
    """Spoils a file of JSON lines."""
    if rng.random() < 0.12:
        file(rng, path)
        return
    lines = path.read_bytes().splitlines()
    for at in rng.sample(range(len(lines)), min(len(lines), rng.randint(1, 2))):
        if rng.random() < 0.2:
            lines[at] = data(rng, lines[at])
        else:
            lines[at] = dumped(rng, json_value(rng, json.loads(lines[at]), times=1))
    path.write_bytes(rng.choice([b'\n', b'\r\n', b'\n\n']).join(lines))


def binary_file(rng: random.Random, path: pathlib.Path) -> None:
    """Spoils a file of no text."""
    if rng.random() < 0.1:
        file(rng, path)
    else:
        path.write_bytes(data(rng, path.read_bytes()))

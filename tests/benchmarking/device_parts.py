"""Parts of a check that end in all the ways that one can end."""

import os
import time
from typing import Any

from ppjax.base import atomic, errors


def fine(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    return {'size': sizes.name, 'before': sorted(before), 'odd': float('nan')}


def hang(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    del sizes, before
    if file := os.environ.get('PPJAX_PID_FILE'):
        atomic.write_text(file, str(os.getpid()))
    time.sleep(600)
    return {}


def die(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    del sizes, before
    os._exit(7)


def fail(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    del sizes, before
    raise RuntimeError('RESOURCE_EXHAUSTED: out\nof memory')


def refuse(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    del sizes, before
    raise errors.InputError('there is no such device')


def tell(sizes: Any, before: dict[str, Any]) -> dict[str, Any]:
    del sizes, before
    return {'told': os.environ['PPJAX_TOLD']}

"""Small disks that are full when they are wanted to be."""

import ctypes
import pathlib
from typing import Any

_MEGABYTES = 64
# Of <sched.h> and <sys/mount.h>: a namespace of mounts, which tells no other of them.
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def fill(filler: pathlib.Path) -> None:
    """Leaves no room on a file system."""
    with filler.open('ab', buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def mount(folder: pathlib.Path) -> None:
    """A small disk of this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *values: Any) -> None:
        if getattr(libc, name)(*values):
            raise OSError(ctypes.get_errno(), f'{name} {folder}')

    call('unshare', _CLONE_NEWNS)
    call('mount', b'none', b'/', None, _MS_REC_PRIVATE, None)
    size = f'size={_MEGABYTES}m'.encode()
    call('mount', b'tmpfs', bytes(folder), b'tmpfs', 0, size)

"""Memory that the allocator keeps although nobody has it."""

import contextlib
import ctypes
import gc


def give_back() -> None:
    """Returns free memory to the system, where the C library can.

    After much was loaded or compiled, and nothing as large comes again: glibc keeps what
    was freed in pieces, which for a server is hundreds of megabytes for ever.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # Other C libraries.
        ctypes.CDLL(None).malloc_trim(0)

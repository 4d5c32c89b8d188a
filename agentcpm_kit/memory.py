"""Memory that tensors gave back, given back to the system.

Trainers, models with adapters and engines refer to themselves, and stay until Python looks for such circles, which it does
when there are many new objects, however large a few of them are. And training allocates blocks of ever other sizes: glibc keeps
what is freed, in holes that the next size does not fit. RL of a 135M model grew by 2 GB in two steps, nearly all of which
`trim` returned.
"""

import ctypes
import gc
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGE = 2 * 2**20  # bytes: blocks from this size are mapped one by one, and gone when they are freed


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, with large blocks mapped from now on; None where it is another one."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
        library.mallopt(M_TRIM_THRESHOLD, LARGE)
        return library
    except (OSError, AttributeError):
        return None


def trim() -> None:
    """Collect what only refers to itself, and return what is free (glibc alone; the first call also sets how large blocks are
    allocated)."""
    gc.collect()
    if library := _glibc():
        library.malloc_trim(0)

"""Memory that tensors gave back, given back to the system.

Training allocates blocks of ever other sizes. glibc keeps what is freed, in holes that the next size does not fit: RL of a 135M
model grew by 2 GB in two steps, nearly all of which `trim` returned. Trainers and engines refer to themselves, besides, and stay
until Python looks for such circles, which it does when there are many new objects, however large a few are: `release`.
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
    """Return what is free; the first call also sets how large blocks are allocated. Without effect outside glibc."""
    if library := _glibc():
        library.malloc_trim(0)


def release() -> None:
    """Collect what only refers to itself, and `trim`. All objects are walked: at the end of a training, not at its steps."""
    gc.collect()
    trim()

"""Gives memory back to the operating system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Returns the allocator's free pages. Blocks for milliseconds: call it in a thread.

    glibc keeps what a dropped session freed; without this, a server that
    swaps often grows by a model a swap. Where the C library has no
    `malloc_trim` (musl, macOS) there is nothing to do.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

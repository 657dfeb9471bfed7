"""What this process has of the machine's memory, and how it gives it back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hedgerow_server.scheduling import be_nice

#: For the environment of a process that loads models (GLIBC_TUNABLES, read once, at its start).
#:
#: Weights lie in blocks of megabytes. glibc takes such a block from the system alone and unmaps it
#: when it is freed; ONNX Runtime frees while it holds the GIL, so dropping 200 MB stopped the event
#: loop for 40 ms. With a higher threshold they lie in the heap, are free in 2 ms, and go back to
#: the system in `give_back`, which needs no GIL. Not in huge pages (hugetlb=1), which make that and the
#: loading quicker: the kernel clears one for up to 5 ms in which the event loop waits for its core.
#:
#: Eight arenas for each core, glibc's measure, are fewer than the threads of a worker with one: then the
#: transport shares one with a load, and waits while that is emptied. 64 are more than a worker has threads.
_TRIM_THRESHOLD = 128 << 20
TUNABLES = (
    f"glibc.malloc.mmap_threshold={32 << 20}:glibc.malloc.trim_threshold={_TRIM_THRESHOLD}"
    ":glibc.malloc.arena_max=64"
)

_MADV_DONTNEED = 4
_LIBC = ctypes.CDLL(None, use_errno=True)
#: glibc's mallopt(3) has a name for it.
_M_TRIM_THRESHOLD = -1
#: When a block of more than 64 KiB is freed, glibc looks at what is free at the end of its arena.
_ANCHOR_BYTES = 72 << 10
#: Anchors whose owners are gone.
_loose: deque[int] = deque()


def anchor(owner: object) -> None:
    """Has `give_back` reach the end of this thread's arena once `owner` is gone.

    Each thread has an arena of the allocator. `malloc_trim` gives back what is free between blocks in all
    of them, but what is free behind the last block only in the first thread's. In the others glibc does
    that when a large block is freed, and with `TUNABLES` not even then, for it takes milliseconds and who
    frees may hold the GIL: up to 64 MB of a dropped model stayed. So who owns much memory has a block
    beside it, of 72 KiB, and `give_back` frees that.

    Args:
        owner: dies when this thread's memory is freed; weak references to it are possible.
    """
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc.restype = ctypes.c_void_p
        block = _LIBC.malloc(ctypes.c_size_t(_ANCHOR_BYTES))
        if block is not None:
            # Memory of this process need not be freed when it ends.
            weakref.finalize(owner, _loose.append, block).atexit = False


def give_back() -> None:
    """Returns the allocator's free pages. Blocks for milliseconds: call it in a thread.

    glibc keeps what a dropped session freed; without this, a server that
    swaps often grows by a model a swap. Where the C library has no
    `malloc_trim` (musl, macOS) there is nothing to do.
    """
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is None:
        return
    if _loose:
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 1 << 20)
        while _loose:
            _LIBC.free(ctypes.c_void_p(_loose.popleft()))
        _LIBC.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    trim(0)


class GivingBack:
    """Gives free pages back a while after loads and drops have freed them, when none is at work.

    `malloc_trim` locks an arena while it empties it: 10 ms for 200 MB, and several times that at low
    priority on a busy core. Who takes or frees memory there meanwhile waits for it. The event loop does
    when it lets go of what a load has handed to it; so it has time for that first. The Python code of the
    next load does, and with the GIL, so that everything waits; so the two take turns.

    Holds: how many loads and drops are at work, and whether a thread is about to give back.

    Args:
        give: gives back; blocks.
        after: seconds from when it is asked for.
        patience: seconds to wait for loads at work. One that hangs is not waited for longer.
    """

    def __init__(
        self, give: Callable[[], None] = give_back, *, after: float = 1.0, patience: float = 3.0
    ) -> None:
        self._give = give
        self._after = after
        self._patience = patience
        self._turn = threading.Condition()
        self._at_work = 0
        self._asked = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While a load or a drop takes and frees memory. Waits for giving back to end: use in a thread."""
        with self._turn:
            self._at_work += 1
        try:
            yield
        finally:
            with self._turn:
                self._at_work -= 1
                self._turn.notify_all()

    def ask(self) -> None:
        """Has it done soon, once for all who ask meanwhile. Waits for one that goes on, like `at_work`."""
        with self._turn:
            if not self._asked:
                threading.Thread(target=self._run, daemon=True, name="give-back").start()
                self._asked = True

    def _run(self) -> None:
        be_nice()
        time.sleep(self._after)
        with self._turn:
            self._turn.wait_for(lambda: not self._at_work, self._patience)
            self._asked = False
            self._give()


#: The process has one allocator.
GIVING_BACK = GivingBack()


def unmap_pages(files: Iterable[Path]) -> None:
    """Lets go of the pages of mapped files; who reads them again gets them again from the page cache.

    A session that is destroyed unmaps its weights while it holds the GIL: 18 ms
    for 200 MB, in which the event loop stands still. Emptied before, without
    the GIL, the mapping costs next to nothing to remove. Blocks. Linux only;
    elsewhere there is nothing to do.
    """
    names = {str(file.resolve()) for file in files}
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    for line in maps.splitlines():
        fields = line.split(None, 5)
        # ONNX Runtime maps them writable, but never writes to constant weights: nothing is lost.
        if len(fields) == 6 and fields[5] in names:
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def let_go(sessions: list[object], weights: Iterable[Path]) -> None:
    """Drops sessions, and has what they had given back soon. Blocks: call it in a thread.

    Args:
        sessions: emptied; the only reference to what is to be destroyed.
        weights: files that they map.
    """
    unmap_pages(weights)
    with GIVING_BACK.at_work():
        sessions.clear()
    GIVING_BACK.ask()


def available() -> int | None:
    """Bytes of memory that this process may still use before something is killed; None if nobody knows.

    The smaller of what the machine and what the control group (a container's limit) have left;
    both count the page cache as available.
    """
    found = [free for free in (_of_machine(Path("/proc/meminfo")), _of_group(Path("/sys/fs/cgroup"))) if free]
    return min(found, default=None)


def _of_machine(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return None


def _of_group(group: Path) -> int | None:
    """What version 2 control groups leave: a container sees its own at the root."""
    try:
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        cache = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        return max(1, limit - used + int(cache.get("inactive_file", 0)))
    except (OSError, ValueError):  # no limit ("max"), version 1, another system
        return None

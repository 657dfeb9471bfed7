"""A trial load in a child process that may crash, hang or run out of memory without harm.

The watcher forks before anything heavy is imported; the child imports the
loader, then puts itself under limits, and only then opens the file. Nothing
but the standard library is imported here at the top, so the watcher costs a
few milliseconds and stays single-threaded, which is what makes the fork safe.

Unless told otherwise it tries twice. The first child runs only when nothing else wants its core
(SCHED_IDLE): a normal thread that wakes up takes the core from it at once, from a nice one only when that
has had its time slice, some milliseconds. On a core that is never free such a child gets nowhere, so after
a twelfth of the time a second one at nice 10 takes its place; an unprivileged process cannot be raised again.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from hedgerow_server.exits import signal_name

_MIB = 1 << 20
_READ = 1 << 16
#: Priority of a trial load that must get on: who serves on the same cores goes first, but it gets a tenth
#: of a busy core.
NICE = 10
#: The part of its time in which a trial load runs only when nothing else does.
IDLE_PART = 1 / 12
#: Linux's prctl options: the signal a process gets when its parent dies; whether it gets huge pages.
_PR_SET_PDEATHSIG = 1
_PR_SET_THP_DISABLE = 41
#: What a process says on its standard error that died for want of memory.
_NO_MEMORY = (b"bad_alloc", b"MemoryError", b"can't start new thread")
_CRASHES: dict[int, str] = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error; a file may have shrunk while it was read",
    signal.SIGABRT: "abort",
    signal.SIGFPE: "arithmetic fault",
    signal.SIGILL: "an instruction that this CPU does not have",
}


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What a trial load may use.

    Attributes:
        memory_bytes: Address space on top of the interpreter and ONNX Runtime (about 350 MiB).
            Mapped files count, so it must exceed the size of the model.
        cpu_seconds: CPU time over all threads.
        wall_seconds: From start to verdict.
        warmup_seconds: For the warm-up runs alone; less if `wall_seconds` leaves less.
    """

    memory_bytes: int = 4 << 30
    cpu_seconds: int = 60
    wall_seconds: float = 60.0
    warmup_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial load showed.

    Attributes:
        ok: Whether the model can be served.
        reason: Why not, and what to do; empty if it can.
        inputs: `{"name": str, "datatype": str, "shape": [int, ...]}` each, -1 for what varies.
        outputs: Likewise.
        max_batch_size: As in `Signature`.
        load_seconds: From the file to the session.
        warm_seconds: The first runs.
        row_independent: As in `LoadedModel`.
        timed_out: It is refused for want of time, which says as much of the machine as of the model.
    """

    ok: bool
    reason: str = ""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    max_batch_size: int = 0
    load_seconds: float = 0.0
    warm_seconds: float = 0.0
    row_independent: bool = False
    timed_out: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Verdict:
        """The reverse of `to_json`; raises ValueError or TypeError for anything else."""
        return cls(**json.loads(line))


def run(
    directory: Path, path: str, serving: str, limits: ProbeLimits, *, once: float | None = None
) -> Verdict:
    """Loads a model in a child process and waits for it.

    Blocks, and forks: only for a process with a single thread.

    Args:
        directory: Where the model's files are.
        path: The model in it.
        serving: The ServingSpec as JSON; may be empty.
        limits: For the child.
        once: Seconds of the limit for one try at the priority that this process has; None: tries twice.

    Returns:
        The verdict; of a child that was killed, one that says what killed it.
    """
    seconds = limits.wall_seconds if once is None else once
    if hasattr(os, "SCHED_IDLE") and once is None:
        started = time.monotonic()
        verdict = _attempt(directory, path, serving, limits, seconds * IDLE_PART, idle=True)
        if not verdict.timed_out:
            return verdict
        seconds -= time.monotonic() - started
    return _attempt(directory, path, serving, limits, seconds, idle=False)


def _attempt(
    directory: Path, path: str, serving: str, limits: ProbeLimits, seconds: float, *, idle: bool
) -> Verdict:
    until = time.monotonic() + seconds
    verdict_end, verdict_start = os.pipe()
    error_end, error_start = os.pipe()
    watcher = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(verdict_end)
        os.close(error_end)
        _start_child(watcher, error_start, idle=idle)
        _load_and_exit(directory, path, serving, replace(limits, wall_seconds=seconds), verdict_start)
    os.close(verdict_start)
    os.close(error_start)
    try:
        verdict, errors, in_time = _read_both(verdict_end, error_end, until)
    finally:
        # The child leads a process group of its own: whatever it started goes with it.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if verdict:
        with contextlib.suppress(ValueError, TypeError):
            return Verdict.from_json(verdict)
    if not in_time:
        return _refused(
            f"the model was not loaded and warm within {limits.wall_seconds:g} s, and was stopped; "
            "give it a smaller warm-up sample in serving.yaml, or more time",
            timed_out=True,
        )
    return _refused(_why_it_ended(status, errors, limits))


def _read_both(verdict: int, errors: int, until: float) -> tuple[bytes, bytes, bool]:
    """Reads both pipes to their ends; False if the time was over before."""
    found = {verdict: b"", errors: b""}
    with selectors.DefaultSelector() as selector:
        for end in found:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, _READ)
                if not chunk:
                    selector.unregister(key.fd)
                found[key.fd] += chunk
                # Only the last errors matter.
                found[errors] = found[errors][-_READ:]
        in_time = not selector.get_map()
    os.close(verdict)
    os.close(errors)
    return found[verdict], found[errors], in_time


def _why_it_ended(status: int, errors: bytes, limits: ProbeLimits) -> str:
    if any(mark in errors for mark in _NO_MEMORY):
        return _too_much_memory(limits)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return (
                f"the model used more than {limits.cpu_seconds} s of CPU time while it was loaded and "
                "warmed up; give it a smaller warm-up sample in serving.yaml, or more time"
            )
        if number == signal.SIGKILL:
            return "the system killed the trial load, most likely because the machine ran out of memory"
        what = _CRASHES.get(number) or signal_name(number)
        return (
            f"the model crashed ONNX Runtime ({what}) while it was loaded and warmed up; it cannot be served"
        )
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return f"the trial load failed with exit code {os.WEXITSTATUS(status)}: {last or 'no message'}"


def _too_much_memory(limits: ProbeLimits) -> str:
    return (
        f"the model used more than {limits.memory_bytes // _MIB} MiB while it was loaded and warmed up; "
        "make it smaller, or raise the memory limit of the trial load"
    )


def _refused(reason: str, *, timed_out: bool = False) -> Verdict:
    return Verdict(ok=False, reason=reason, timed_out=timed_out)


# The child.


def _start_child(watcher: int, errors: int, *, idle: bool) -> None:
    """Makes the process one that leaves nothing behind: a group of its own, no input, no orphan."""
    # Not a session: Linux shares cores out between sessions first, whatever the priorities within each.
    os.setpgid(0, 0)
    if idle:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (errors, 1), (errors, 2)):
        os.dup2(source, target)
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  (heavy, and only for the child)

        prctl = ctypes.CDLL(None).prctl
        # The kernel clears a huge page in one go, for up to 5 ms on a virtual machine whose host has to find
        # it first, and whoever serves on this core waits, whatever the priorities.
        prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != watcher:  # it died before this took effect
            os._exit(1)


def _load_and_exit(directory: Path, path: str, serving: str, limits: ProbeLimits, verdict: int) -> NoReturn:
    started = time.monotonic()
    code = 1
    try:
        answer = _load(directory, path, serving, limits, started)
        os.write(verdict, answer.to_json().encode())
        code = 0
    except BaseException as error:  # noqa: BLE001  (the watcher tells what it reads here)
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _load(directory: Path, path: str, serving: str, limits: ProbeLimits, started: float) -> Verdict:
    # Heavy, and only for the child.
    from google.protobuf import json_format  # noqa: PLC0415
    from hedgerow_protos.hedgerow_control_pb2 import ServingSpec  # noqa: PLC0415

    from .loading import LoadRefused, OutOfMemory, load  # noqa: PLC0415
    from .refusal import TooSlow  # noqa: PLC0415

    _limit(limits)
    try:
        spec = json_format.Parse(serving or "{}", ServingSpec())
        left = limits.wall_seconds - (time.monotonic() - started)
        model = load(directory, path, spec, warmup_timeout=min(limits.warmup_seconds, left * 0.8))
    except json_format.ParseError as error:
        return _refused(f"the serving spec is not valid: {error}")
    except (OutOfMemory, MemoryError):
        return _refused(_too_much_memory(limits))
    except LoadRefused as error:
        return _refused(str(error), timed_out=isinstance(error, TooSlow))
    inputs, outputs = (
        [{"name": spec.name, "datatype": spec.datatype.name, "shape": list(spec.shape)} for spec in specs]
        for specs in (model.signature.inputs, model.signature.outputs)
    )
    return Verdict(
        ok=True,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=model.signature.max_batch_size,
        load_seconds=model.load_seconds,
        warm_seconds=model.warm_seconds,
        row_independent=model.row_independent,
    )


def _limit(limits: ProbeLimits) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(usage.ru_utime + usage.ru_stime) + 1 + limits.cpu_seconds
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, *(2 * (_address_space() + limits.memory_bytes,))),
        (resource.RLIMIT_NOFILE, 256, 256),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def _address_space() -> int:
    """Bytes of address space this process uses now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0

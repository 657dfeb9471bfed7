"""From a file to a warm session, or a refusal that says what to do.

Everything here blocks and is called in a thread; ONNX Runtime gives the GIL
back while it loads and runs (from release 1.32 on). An untrusted model goes
through `probe` first, which does the same in a limited child process.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
from hedgerow_protos.feature_binding import BindingError, check_binding
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from hedgerow_server.resilience.rules import Rules

from . import batching, buffers, gears, memory, model_file, priorities, warmup
from . import signature as signatures
from .gears import Gear, Source
from .refusal import LoadRefused, OutOfMemory, is_out_of_memory, text_of
from .signature import Signature

__all__ = ["LoadRefused", "LoadedModel", "OutOfMemory", "load"]

#: More threads than any machine has cores for; a number above it is a slip.
_MOST_THREADS = 256
#: A model up to so many bytes whose runs go through buffers that stay (`buffers.fits`) allocates from the
#: heap, which all models share: 64 perceptrons take 33 MB in place of 102, and their runs, caches cold as a
#: session's own arena would be, 12.6 µs in place of 15.4. Others keep it: large runs may take a third longer.
SMALL_BYTES = 1 << 20
#: As with [hedge] after_ms.
_LONGEST_HEDGE_DELAY_MS = 60_000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, warm.

    Attributes:
        session: Thread-safe; may be run from several threads at once.
        signature: Its inputs and outputs.
        load_seconds: From the file to the session.
        warm_seconds: The warm-up and the check of its rows.
        row_independent: Whether a row's outputs stay the same whatever else is in the batch.
            If not, rows of different requests must never share a run.
        gear: How its weights are held.
        source: From where it can be packed; None if there is no second gear.
        max_batch_size: What the declared signature was read with.
        rules: What answers where the model cannot; None without rules.
        loops: Whether values decide how long a run takes (`model_file.ModelFile.loops`).
    """

    session: ort.InferenceSession
    signature: Signature
    load_seconds: float
    warm_seconds: float
    row_independent: bool
    gear: Gear = Gear.PACKED
    source: Source | None = None
    max_batch_size: int = 0
    rules: Rules | None = None
    loops: bool = False


def load(
    directory: Path,
    path: str,
    serving: ServingSpec,
    *,
    mapped: bool = False,
    default_max_batch_size: int = 128,
    warmup_timeout: float = 30.0,
) -> LoadedModel:
    """Loads a model and warms it.

    Args:
        directory: Where its files are; nothing outside is read.
        path: The `.onnx` file, relative to it.
        serving: From serving.yaml; may be empty.
        mapped: Where it pays (`gears.has_two`), leave weights in the file as they are
            (`session.disable_prepacking`): external data is then mapped, not copied, so that it
            loads in milliseconds and its pages are shared between sessions, while runs are slower
            (201 MB: 4 ms to load instead of 454, 7.5 ms a run instead of 5.4).
        default_max_batch_size: Rows in one run, where `serving` does not say.
        warmup_timeout: Seconds for all warm-up runs together.

    Returns:
        The model, after it answered its warm-up sample.

    Raises:
        LoadRefused: It cannot be served; `OutOfMemory` if for want of memory.
    """
    file = model_file.check(directory, path)
    mapped = mapped and gears.has_two(file)
    max_batch_size = serving.batching.max_batch_size or default_max_batch_size
    started = time.perf_counter()
    is_small = file.bytes <= SMALL_BYTES
    session = open_session(directory / path, serving, mapped=mapped, arena=not is_small)
    signature = signatures.read(session, max_batch_size=max_batch_size)
    if is_small and not buffers.fits(signature, signature.max_batch_size or 1):
        # Only its signature tells; a small file opens again in a few milliseconds.
        session = open_session(directory / path, serving, mapped=mapped)
    load_seconds = time.perf_counter() - started
    for unranked in file.unranked:
        if any(argument.name == unranked for argument in session.get_inputs()):
            raise LoadRefused(
                f"input {unranked!r} does not give its shape; export the model with one "
                "(dimensions that vary may have a name in place of a size)"
            )
    batching.wait_of(serving, max_batch_size)
    priorities.priorities_of(serving)
    _check_binding(serving, signature)
    _check_hedging(serving)
    warmed = warmup.warm(session, signature, serving.warmup, warmup_timeout)
    return LoadedModel(
        session,
        warmed.signature,
        load_seconds,
        warmed.seconds,
        warmed.row_independent,
        Gear.MAPPED if mapped else Gear.PACKED,
        Source(directory, path, file) if mapped else None,
        max_batch_size,
        Rules.compile(serving, warmed.signature),
        file.loops,
    )


def _check_binding(serving: ServingSpec, signature: Signature) -> None:
    """Refuses a model whose inputs cannot be laid out as its serving spec binds them."""
    try:
        check_binding(serving.features, signature.input_shapes)
    except BindingError as error:
        raise LoadRefused(str(error)) from error


def _check_hedging(serving: ServingSpec) -> None:
    """Refuses a delay that nobody can have meant."""
    after_ms = serving.hedging.after_ms
    if not 0 <= after_ms <= _LONGEST_HEDGE_DELAY_MS:  # NaN is neither
        raise LoadRefused(
            f"hedging.after_ms is {after_ms:g}; it is milliseconds, at most {_LONGEST_HEDGE_DELAY_MS:g}, "
            "or 0 for the server's"
        )


def open_session(
    file: Path, serving: ServingSpec, *, mapped: bool, arena: bool = True
) -> ort.InferenceSession:
    """Opens a checked file, in either gear.

    Args:
        file: The model.
        serving: From serving.yaml.
        mapped: Leave weights in the file as they are; see `load`.
        arena: Whether the session keeps what a run allocates for the next; see `SMALL_BYTES`.

    Raises:
        LoadRefused: ONNX Runtime cannot load it; `OutOfMemory` if for want of memory.
    """
    return _open(file, _options(serving, mapped=mapped, arena=arena))


def _options(serving: ServingSpec, *, mapped: bool, arena: bool) -> ort.SessionOptions:
    threads = serving.session.intra_op_threads or 1
    if threads > _MOST_THREADS:
        raise LoadRefused(f"session.intraOpThreads is {threads}; at most {_MOST_THREADS} make sense")
    options = ort.SessionOptions()
    # One thread a run: many requests keep the cores busy, and a pool's hand-over costs more than a
    # small model's run. No spinning: it burns the cores that the other requests need.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Failures come as exceptions; a log line for each would let a caller fill the log.
    options.log_severity_level = 4
    if not arena:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _open(file: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime raises a dozen types that have only Exception in common.
        if is_out_of_memory(error):
            raise OutOfMemory(f"the model ran out of memory while it was loaded: {text_of(error)}") from error
        raise LoadRefused(_explain(str(error), text_of(error))) from error
    memory.anchor(session)
    return session


def _explain(message: str, text: str) -> str:
    """What to do about ONNX Runtime's refusal to load."""
    if found := re.search(r"(\S+?)(?:\(-?\d+\))? is not a registered function/op", message):
        return _unknown_operator(found[1])
    if found := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", message):
        return _unknown_operator(f"{found[1]} (opset {found[2]})")
    if found := re.search(
        r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", message
    ):
        return (
            f"the model needs opset {found[1]} of {found[2]}, ONNX Runtime {ort.__version__} knows up to "
            f"{found[3]}; export it with opset {found[3]} or lower"
        )
    if found := re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", message):
        return (
            f"the model has ONNX IR version {found[1]}, ONNX Runtime {ort.__version__} reads up to "
            f"{found[2]}; set model.ir_version = {found[2]} before saving, or export with an older onnx"
        )
    if found := re.search(r"Could not find an implementation for (\S+) node", message):
        return (
            f"ONNX Runtime has no CPU kernel for operator {found[1]} with the types that the model gives it "
            "(BF16 and 8-bit floats mostly run on GPUs only); export in FP32 or FP16"
        )
    if "External initializer" in message or "external data size mismatch" in message:
        return f"the external data does not hold what the model says ({text}); copy it again, whole"
    if found := re.search(r"MLDataType for: (\S+) is not currently registered", message):
        return f"the model uses {found[1]}, which ONNX Runtime does not run; export it with real-valued types"
    return f"ONNX Runtime cannot load the model: {text}"


def _unknown_operator(name: str) -> str:
    return (
        f"the model uses the operator {name}, which ONNX Runtime {ort.__version__} does not know; custom "
        "operator libraries are never loaded, so export it with standard operators"
    )

"""From a mapped session to a packed one that answers the same, or a reason why not.

Blocks, like `loading`. What changes the gear must not change the answers, so a
packed session takes over only after it has answered like the mapped one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import onnxruntime as ort
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec

from . import loading, memory, model_file, rows, warmup
from . import signature as signatures
from .gears import Source
from .loading import LoadedModel
from .refusal import LoadRefused, OutOfMemory
from .sample import Feeds, rows_of, vary
from .signature import Signature
from .warmup import TimeLimit

#: Memory that packing needs, as a multiple of the weights: kernels pad what they copy.
_ROOM = 1.25


@dataclass(frozen=True, slots=True)
class PackedSession:
    """The second gear of a loaded model, warm.

    Attributes:
        session: Answers like the mapped one.
        seconds: From the files to here.
        run_seconds: The quickest run of the warm-up sample.
    """

    session: ort.InferenceSession
    seconds: float
    run_seconds: float


def pack(
    model: LoadedModel,
    serving: ServingSpec,
    *,
    warmup_timeout: float = 30.0,
    available: Callable[[], int | None] = memory.available,
) -> PackedSession:
    """Packs the weights of a model that was loaded mapped, and warms the new session.

    Args:
        model: With a `source`.
        serving: Of the same version.
        warmup_timeout: Seconds for the warm-up runs, and as many for the comparison.
        available: Bytes of memory that may still be used; None if nobody knows.

    Returns:
        The packed session.

    Raises:
        LoadRefused: It cannot take over; `OutOfMemory` if for want of memory.
    """
    source = model.source
    assert source is not None, "loaded without a second gear"
    started = time.perf_counter()
    _check_unchanged(source)
    _check_room(source, available)
    session = loading.open_session(source.directory / source.path, serving, mapped=False)
    # Again: the session has read the files once more.
    _check_unchanged(source)
    signature = signatures.read(session, max_batch_size=model.max_batch_size)
    warmed = warmup.warm(session, signature, serving.warmup, warmup_timeout)
    if warmed.signature != model.signature or (model.row_independent and not warmed.row_independent):
        raise LoadRefused("with packed weights its rows behave differently in a batch")
    with TimeLimit(warmup_timeout) as limit:
        _check_same(model, session, warmed.feeds, limit)
        run_seconds = min(_timed(session, warmed.feeds, limit) for _ in range(3))
    return PackedSession(session, time.perf_counter() - started, run_seconds)


def _check_unchanged(source: Source) -> None:
    if model_file.check(source.directory, source.path).stamp != source.file.stamp:
        raise LoadRefused("its files have changed since it was loaded; load it again")


def _check_room(source: Source, available: Callable[[], int | None]) -> None:
    # Where memory is overcommitted no allocation fails: the kernel ends the process when it is used.
    free = available()
    need = int(source.file.external_bytes * _ROOM)
    if free is not None and free < need:
        raise OutOfMemory(f"packing needs about {need >> 20} MiB of memory, {free >> 20} MiB are available")


def _check_same(model: LoadedModel, packed: ort.InferenceSession, feeds: Feeds, limit: TimeLimit) -> None:
    for sample in (feeds, *vary(model.signature, rows_of(feeds))):
        try:
            expected, again = (limit.run(model.session, sample) for _ in range(2))
        except Exception as error:
            if limit.is_over:
                raise LoadRefused(f"its answers could not be compared within {limit.text}") from error
            continue  # a made-up row that the model rightly refuses
        if not _is_same(model.signature, expected, again):
            return  # it draws random numbers: there is nothing to compare
        try:
            found = limit.run(packed, sample)
        except Exception as error:
            raise LoadRefused("with packed weights it fails on what it answered before") from error
        if not _is_same(model.signature, expected, found):
            raise LoadRefused("packed weights change its answers by more than rounding does")


def _is_same(signature: Signature, one: rows.Outputs, other: rows.Outputs) -> bool:
    return all(
        rows.is_rounding(spec, first, second)
        for spec, first, second in zip(signature.outputs, one, other, strict=True)
    )


def _timed(session: ort.InferenceSession, feeds: Feeds, limit: TimeLimit) -> float:
    started = time.perf_counter()
    limit.run(session, feeds)
    return time.perf_counter() - started

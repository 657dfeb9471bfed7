"""What the engine takes and gives back: tensors of one request, results of one run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, cast

import msgspec
import numpy as np

from hedgerow_server.engine.signature import Signature

#: One input of one request: the tensor's bytes, row-major and little-endian,
#: or for BYTES tensors an array of str objects.
Part = bytes | memoryview | np.ndarray


class Work(Protocol):
    """What the engine reads of a request that was found to fit its model."""

    rows: int
    kind: Hashable | None
    #: 1 is the highest; 0 where the model has no priorities.
    priority: int
    deadline: float
    ended: bool
    #: Per input of the model, in its order.
    parts: Sequence[Part]
    shapes: Sequence[tuple[int, ...]]
    #: Positions of the outputs to give; None: all.
    outputs: tuple[int, ...] | None
    #: perf_counter_ns when it joined the queue, and when its run began.
    queued_ns: int
    started_ns: int


class Ran(msgspec.Struct, frozen=True):
    """One run that gave outputs.

    `outputs` are those asked for, over all `rows` of the batch. The parts of its
    time are nanoseconds. It is `fixed` if all sizes but the rows are the model's
    own, and all outputs were asked for.
    """

    outputs: list[np.ndarray]
    rows: int
    input_ns: int
    run_ns: int
    fixed: bool = False


def assemble(signature: Signature, batch: Sequence[Work], rows: int) -> dict[str, np.ndarray]:
    """The feeds of one run: the inputs of all requests, one behind the other.

    A single request's tensors are not copied, unless they lie in its message at an odd place.

    Args:
        signature: of the model.
        batch: the requests.
        rows: of all of them together.

    Returns:
        Input name -> array; read-only where it lies on a request's own bytes.
    """
    feeds: dict[str, np.ndarray] = {}
    first = batch[0]
    if len(batch) == 1:
        for i, spec in enumerate(signature.inputs):
            part = first.parts[i]
            array = part if isinstance(part, np.ndarray) else np.frombuffer(part, spec.datatype.dtype)
            if isinstance(part, memoryview) and not array.flags.aligned:
                # Kernels may load it as the aligned type that it says it is.
                array = array.copy()
            feeds[spec.name] = array.reshape(first.shapes[i])
        return feeds
    for i, spec in enumerate(signature.inputs):
        shape = (rows, *first.shapes[i][1:])
        parts = [work.parts[i] for work in batch]
        if spec.datatype.itemsize:
            joined = b"".join(cast("list[bytes]", parts))
            feeds[spec.name] = np.frombuffer(joined, spec.datatype.dtype).reshape(shape)
        else:
            feeds[spec.name] = np.concatenate(cast("list[np.ndarray]", parts)).reshape(shape)
    return feeds

"""Runs through buffers that stay.

`session.run` allocates what it returns, looks up every name and converts every
array; for a small model that is more than the model. An I/O binding does it once:
the tensors of a batch are copied behind each other into an input buffer, and the
outputs appear in another (measured, 32→64→64→1 at one row: 6 µs in place of 12).

Only where every size but the number of rows is fixed, and only on the event
loop's thread: a run's outputs are overwritten by the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnxruntime as ort

from hedgerow_server.engine.signature import Signature, TensorSpec
from hedgerow_server.engine.work import Work

#: Bytes of all buffers of one version; larger tensors gain nothing from them.
MOST_BYTES = 1 << 20
#: Rows that have a binding each.
MOST_ROWS = 256

Run = Callable[[], object]
#: What runs some rows, and all outputs, in the model's order.
Prepared = tuple[Run, list[np.ndarray]]


class BoundRuns:
    """Owns the buffers, and for each number of rows a binding of the session to them.

    Args:
        session: must not be run through these bindings by two threads at once.
        signature: of the model, as `fits` has found it to be good.
        max_rows: rows in one run at most.
    """

    def __init__(self, session: ort.InferenceSession, signature: Signature, max_rows: int) -> None:
        self._session = session
        self.max_rows = min(max_rows, MOST_ROWS)
        self._inputs = [_buffer(spec, self.max_rows) for spec in signature.inputs]
        self._outputs = [_buffer(spec, self.max_rows) for spec in signature.outputs]
        self._bytes = [memoryview(buffer.reshape(-1).view(np.uint8)) for buffer in self._inputs]  # type: ignore[arg-type]  # NumPy's stubs for 3.11 do not say that arrays are buffers
        self._input_names = [spec.name for spec in signature.inputs]
        self._output_names = [spec.name for spec in signature.outputs]
        self._bindings: dict[int, Prepared] = {}

    def fill(self, batch: Sequence[Work], rows: int) -> Prepared:
        """Copies the inputs of a batch into the buffers, one request behind the other.

        Args:
            batch: the requests.
            rows: of all of them together.

        Returns:
            What runs them, and where the outputs are then, until the next run.
        """
        for i, target in enumerate(self._bytes):
            part = batch[0].parts[i]
            if len(batch) > 1 or part.__class__ is not bytes:
                part = b"".join([work.parts[i] for work in batch])  # type: ignore[misc]  # as above
            target[: len(part)] = part
        prepared = self._bindings.get(rows)
        if prepared is None:
            prepared = self._bindings[rows] = self._bind(rows)
        return prepared

    def _bind(self, rows: int) -> Prepared:
        binding = self._session.io_binding()
        outputs = [buffer[:rows] for buffer in self._outputs]
        for name, buffer in zip(self._input_names, self._inputs, strict=True):
            part = buffer[:rows]
            binding.bind_input(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        for name, part in zip(self._output_names, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        return _run_of(self._session, binding), outputs


def _run_of(session: ort.InferenceSession, binding: ort.IOBinding) -> Run:
    """What runs a session through a binding.

    `session.run_with_iobinding` asks each time whether the session records graphs for WebGPU, and ONNX
    Runtime makes run options for each run that brings none: with what it would call in the end, and
    options that stay, a run of 2.8 µs takes 2.1. Where another release has no such method, the public one.
    """
    try:
        run, bound = session._sess.run_with_iobinding, binding._iobinding  # noqa: SLF001 - see above
    except AttributeError:
        return partial(session.run_with_iobinding, binding)
    return partial(run, bound, ort.RunOptions())


def fits(signature: Signature, max_rows: int) -> bool:
    """Whether a model's runs can go through buffers: all sizes but the rows are fixed, and small.

    An output that is an input as well would not appear in its buffer: ONNX Runtime gives the input's.
    """
    specs = (*signature.inputs, *signature.outputs)
    if (
        signature.max_batch_size == 0
        or any(not spec.datatype.itemsize or min(spec.shape[1:], default=1) < 1 for spec in specs)
        or len({spec.name for spec in specs}) < len(specs)
    ):
        return False
    row = sum(math.prod(spec.shape[1:]) * spec.datatype.itemsize for spec in specs)
    return row * min(max_rows, MOST_ROWS) <= MOST_BYTES


def _buffer(spec: TensorSpec, rows: int) -> np.ndarray:
    return np.zeros((rows, *spec.shape[1:]), spec.datatype.dtype)

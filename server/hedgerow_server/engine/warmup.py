"""The first runs of a model: it has to answer before any traffic reaches it."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime as ort
from hedgerow_protos.hedgerow_control_pb2 import Warmup

from . import rows
from .refusal import LoadRefused, OutOfMemory, TooSlow, is_out_of_memory, text_of
from .rows import Outputs
from .sample import Feeds, describe, samples
from .signature import Signature

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Warmed:
    """What the first runs showed.

    Attributes:
        signature: As declared, corrected by what the model really answered.
        row_independent: Whether rows of different requests may share a run.
        seconds: How long it took.
        feeds: The sample that it answered.
    """

    signature: Signature
    row_independent: bool
    seconds: float
    feeds: Feeds


class TimeLimit:
    """Runs of a session that end, all together, `seconds` after entering.

    A timer thread sets `RunOptions.terminate`, which ONNX Runtime looks at
    between nodes and between the rounds of a loop. A single kernel that never
    returns is not stopped by it; only the limited child process (probe.py) is
    safe from that.
    """

    def __init__(self, seconds: float) -> None:
        self.text = f"{round(seconds, 1):g} s"
        self.is_over = False
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()

    def _end(self) -> None:
        self.is_over = True
        self._options.terminate = True

    def run(self, session: ort.InferenceSession, feeds: Feeds) -> Outputs:
        """Runs the session; raises ONNX Runtime's own exceptions, also when the time is over."""
        outputs: Outputs = session.run(None, feeds, self._options)
        return outputs


def warm(session: ort.InferenceSession, signature: Signature, warmup: Warmup, timeout: float) -> Warmed:
    """Runs the model for the first time.

    Args:
        session: The model.
        signature: What it declares.
        warmup: The sample; inputs it does not name are zeros.
        timeout: Seconds for all runs together.

    Returns:
        What was learnt.

    Raises:
        LoadRefused: The sample does not fit the inputs, or the model did not answer it.
        TooSlow: It did not answer in time.
    """
    started = time.perf_counter()
    with TimeLimit(timeout) as limit:
        feeds, outputs = _first_answer(session, signature, warmup, limit)
        signature = _with_shapes_of(signature, outputs)
        is_independent = False
        if signature.max_batch_size > 0:
            finding = rows.check(lambda row: limit.run(session, row), signature, feeds)
            if limit.is_over:
                reason = f"{limit.text} were not enough to check that its rows do not depend on each other"
                finding = rows.Finding(is_batchable=True, is_independent=False, reason=reason)
            if finding.reason:
                _log.warning("requests to this model will not share a run: %s", finding.reason)
            if not finding.is_batchable:
                signature = dataclasses.replace(signature, max_batch_size=0)
            is_independent = finding.is_independent
    return Warmed(signature, is_independent, time.perf_counter() - started, feeds)


def _first_answer(
    session: ort.InferenceSession, signature: Signature, warmup: Warmup, limit: TimeLimit
) -> tuple[Feeds, Outputs]:
    first: tuple[Feeds, Exception] | None = None
    for feeds in samples(signature, warmup):
        try:
            return feeds, limit.run(session, feeds)
        except Exception as error:
            if limit.is_over:
                raise TooSlow(
                    f"the model did not answer its warm-up sample within {limit.text} "
                    f"({describe(feeds)}); give a smaller sample in serving.yaml, or more time"
                ) from error
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"the model ran out of memory on its warm-up sample ({describe(feeds)}): {text_of(error)}"
                ) from error
            first = first or (feeds, error)
    assert first is not None, "there is always a sample"
    feeds, failure = first
    raise LoadRefused(
        f"the model failed on its warm-up sample ({describe(feeds)}): {text_of(failure)}. "
        "Give a sample that fits it in serving.yaml: "
        "{warmup: {inputs: {NAME: {shape: [...], values: [...]}}}}"
    ) from failure


def _with_shapes_of(signature: Signature, outputs: Outputs) -> Signature:
    """Gives outputs that declare no shape the rank of what was answered."""
    specs = tuple(
        spec if spec.shape or not np.ndim(value) else dataclasses.replace(spec, shape=(-1,) * np.ndim(value))
        for spec, value in zip(signature.outputs, outputs, strict=True)
    )
    return dataclasses.replace(signature, outputs=specs)

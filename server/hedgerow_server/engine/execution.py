"""Runs batches, one in a runner thread or several short ones on the event loop."""

from __future__ import annotations

import time
from collections.abc import Sequence

import onnxruntime as ort

from hedgerow_server.engine.buffers import Prepared
from hedgerow_server.engine.model import Model
from hedgerow_server.engine.work import Ran, Work, assemble

#: A part of a batch, and what became of it; a failed run is told as its exception.
Outcome = tuple[list[Work], Ran | Exception]
#: The same with the model.
Ended = tuple[Model, list[Work], Ran | Exception]


class BatchShapeError(Exception):
    """The model did not give one row for each row it got."""


def execute_short(
    batches: Sequence[tuple[Model, list[Work]]],
) -> list[Ended]:
    """Runs a batch of each of several models in this thread, through their buffers where that can be.

    First all inputs, then all runs: a run of some microseconds reads most of what is in the
    processor's first cache out of it, and so do the steps around it.

    Returns:
        The parts of the batches, each with its model and what became of it.
    """
    clock = time.perf_counter_ns
    filled: list[tuple[Model, list[Work], Prepared | None, int, int]] = []
    now = clock()
    for model, batch in batches:
        began = now
        rows = batch[0].rows if len(batch) == 1 else sum([work.rows for work in batch])
        buffers = model.bound
        prepared: Prepared | None = None
        if buffers is not None and batch[0].outputs is None and rows <= buffers.max_rows:
            try:
                prepared = buffers.fill(batch, rows)
            except Exception:  # noqa: BLE001  run the ordinary way, which finds out why
                prepared = None
        now = clock()
        filled.append((model, batch, prepared, rows, now - began))
    ended: list[Ended] = []
    for model, batch, prepared, rows, input_ns in filled:
        began = now
        for work in batch:
            work.started_ns = began
        if prepared is not None:
            run, outputs = prepared
            try:
                run()
            except Exception:  # noqa: BLE001, S110  as above
                pass
            else:
                now = clock()
                ended.append((model, batch, Ran(outputs, rows, input_ns, now - began, fixed=True)))
                continue
        ended += [(model, part, result) for part, result in execute(model, batch, None)]
        now = clock()
    return ended


def execute(model: Model, batch: list[Work], options: ort.RunOptions | None) -> list[Outcome]:
    """Runs a batch; if it fails as a whole, each of its requests alone.

    One request's values (an index out of range, say) can make the whole run
    fail; its companions must not notice.

    Returns:
        The parts of the batch, each with its run or the exception that ended it.
    """
    result = _execute_once(model, batch, options)
    if isinstance(result, Ran) or len(batch) == 1 or (options is not None and options.terminate):
        return [(batch, result)]
    parts: list[Outcome] = []
    for work in batch:
        alone = _execute_once(model, [work], options)
        if isinstance(result, BatchShapeError) and isinstance(alone, Ran):
            # Told once, so that the model stops batching.
            parts.append(([], result))
        parts.append(([work], alone))
    return parts


def _execute_once(model: Model, batch: Sequence[Work], options: ort.RunOptions | None) -> Ran | Exception:
    began = time.perf_counter_ns()
    rows = 0
    for work in batch:
        work.started_ns = began
        rows += work.rows
    try:
        asked = batch[0].outputs
        feeds = assemble(model.signature, batch, rows)
        names = model.output_names if asked is None else [model.output_names[i] for i in asked]
        assembled = time.perf_counter_ns()
        outputs = model.run(names, feeds, options)
        ended = time.perf_counter_ns()
        if len(batch) > 1:
            for name, output in zip(names, outputs, strict=True):
                if not output.shape or output.shape[0] != rows:
                    return BatchShapeError(f"output {name!r} has shape {output.shape} for {rows} rows")
    except Exception as error:  # noqa: BLE001  ONNX Runtime's errors share no base class but Exception
        return error
    return Ran(outputs, rows, assembled - began, ended - assembled)

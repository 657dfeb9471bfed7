"""Versions with fallback rules, and a call that asks one."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes_engine import Reply, RequestPath, model, request
from hedgerow_protos import serving_spec
from hedgerow_server.engine.model import Model
from hedgerow_server.resilience.rules import Rules

RULES = """
fallback:
  rules:
    - name: high
      when: x > 10.0
      outputs: {y: x * 2.0}
    - name: otherwise
      outputs: {y: "-1.0"}
"""


def with_rules(made: Model, rules: str = RULES) -> Model:
    """The same version, with rules for its output."""
    made.serving.MergeFrom(serving_spec.parse(rules, source="serving.yaml"))
    made.rules = Rules.compile(made.serving, made.signature)
    return made


def breaks(made: Model) -> Model:
    """The same version, whose every run raises."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("the kernel is broken")

    made.bound = None
    made.run = fail  # type: ignore[method-assign]
    return made


def broken() -> Model:
    """A model x FP32 [batch, 1] with rules whose every run raises."""
    return breaks(with_rules(model("slow", max_batch_size=8, milliseconds=1)))


async def ask(path: RequestPath, rows: list[list[float]], **options: Any) -> Reply:
    """Asks once and waits for the reply."""
    call = path.callers.call(request({"x": rows}, **options))
    path.answerer.answer([call])
    async with asyncio.timeout(20):
        await path.answerer.idle()
    return path.callers.of(call)

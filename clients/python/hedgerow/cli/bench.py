"""`hedgerow bench`: measures this machine."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

from cyclopts import Parameter

from hedgerow.errors import FailedPrecondition

# Of the extra `bench`, what stands for its parts.
_NEEDED = ("hdrh", "hpack", "matplotlib", "onnx", "onnxruntime")


def bench(
    *arguments: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, help="What to measure, and how: `hedgerow bench throughput -h`."
        ),
    ],
) -> int:
    """Measure this machine: throughput, latency, tensors, scale, loads, swap, other servers."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f"`hedgerow bench` needs {', '.join(missing)}: pip install 'hedgerow[bench]'"
        )
    # By name: the client must not depend on the packages of the extra `bench`, not even for its types.
    return int(importlib.import_module("hedgerow_bench.cli").run(list(arguments)))

"""Why a model is not served: the two refusals, and ONNX Runtime's messages made readable."""

from __future__ import annotations

import re

#: ONNX Runtime's code and status before a message, and the place in its own source.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|\S*onnxruntime_src/\S+ [^(]*\([^)]*\)(?: const)?\s"
    r"|Load model from .*? failed:"
    r"|\b\w+\.(?:cc|h):\d+ (?:\w+::)*\w+ "
)
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


class LoadRefused(Exception):
    """The model cannot be served; the message says why and what to do about it."""


class TooSlow(LoadRefused):
    """The model did not answer in the time that it had."""


class OutOfMemory(LoadRefused):
    """The model asked for more memory than there is, or than it may have."""


def text_of(error: BaseException) -> str:
    """ONNX Runtime's message on one line, without its codes and source paths.

    A failure inside nested graphs is told from the outside in; only the innermost is kept.
    """
    text = str(error).rpartition("Status Message: ")[2]
    return " ".join(_NOISE.sub("", text).split()).rstrip(".")[:600]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failure of ONNX Runtime means that memory ran out."""
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in _NO_MEMORY)

"""Command-line options that several measurements have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token


def _share(_: object, tokens: Sequence[Token]) -> float:
    """Reads `50%` or `0.5`."""
    text = tokens[0].value
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


#: A part of the whole: 50% or 0.5.
Percent = Annotated[float, Parameter(converter=_share, n_tokens=1)]
Target = Annotated[str | None, Parameter(help="A running server; without it, servers are started.")]
Model = Annotated[str, Parameter(help="The model to ask, with --target.")]
Seconds = Annotated[float, Parameter(help="Length of each run.")]
Rounds = Annotated[int, Parameter(help="How often each server is asked, in turn with the others.")]
Transport = Annotated[
    Literal["auto", "native", "grpcio"], Parameter(help="Of the Hedgerow server that is started.")
]
Smoke = Annotated[
    bool, Parameter(negative="", help="As short as possible: shows that it works, its numbers say nothing.")
]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the report as JSON; progress to standard error.")
]
Out = Annotated[Path, Parameter(help="For NAME.json, report.html and logs.")]
DEFAULT_OUT = Path("var/bench")

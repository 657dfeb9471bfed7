"""`python -m hedgerow_pipeline`: trains and exports both versions of the arrival-delay model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from hedgerow_pipeline.train import train

app = cyclopts.App(name="hedgerow_pipeline", help="Trains the arrival-delay model on the flights of 2013.")


@app.default
def main(out: Annotated[Path, cyclopts.Parameter(help="Where the files go.")] = Path("var/models")) -> None:
    """Trains both versions and writes them with sample.npz and report.json."""
    report = train(out, tell=lambda line: print(line, flush=True))
    print(f"Wrote {out}/v1, {out}/v2, sample.npz and report.json in {report['seconds']} s", flush=True)


if __name__ == "__main__":
    app()

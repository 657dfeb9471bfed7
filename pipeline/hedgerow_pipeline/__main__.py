"""`python -m hedgerow_pipeline`: trains and exports both versions of the arrival-delay model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts

from hedgerow_pipeline.train import train

app = cyclopts.App(name="hedgerow_pipeline", help="Trains the arrival-delay model on the flights of 2013.")


@app.default
def main(
    out: Annotated[Path, cyclopts.Parameter(help="Where the files go.")] = Path("var/models"),
    ttl: Annotated[str, cyclopts.Parameter(help="How long the views' values are fresh.")] = "60s",
    stale_ttl: Annotated[str, cyclopts.Parameter(help="How old they may be while the store is down.")] = "1h",
) -> None:
    """Trains both versions and writes them with their feature views, sample.npz and report.json."""
    report = train(out, ttl=ttl, stale_ttl=stale_ttl, tell=lambda line: print(line, flush=True))
    print(
        f"Wrote {out}/v1, {out}/v2, {out}/features, sample.npz and report.json in {report['seconds']} s",
        flush=True,
    )


if __name__ == "__main__":
    app()

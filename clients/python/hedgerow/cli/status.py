"""`hedgerow status`: the control plane's view of registry, servers, versions and routes."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter
from hedgerow_protos import hedgerow_control_pb2 as pb
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hedgerow.cli import output
from hedgerow.cli.endpoints import resolve
from hedgerow.cli.options import Control, Json
from hedgerow.cli.traffic import view as traffic_view
from hedgerow.cli.unreachable import explained
from hedgerow.errors import DeadlineExceeded, InvalidRequest, Unavailable
from hedgerow.operator import Operator

EXAMPLES = """\
Examples:
  hedgerow status
  hedgerow status --watch               live, until Ctrl-C
  hedgerow status --watch --json        one JSON document a line\
"""


def status(
    *,
    watch: Annotated[bool, Parameter(negative=(), show_default=False, help="Refresh until Ctrl-C.")] = False,
    interval: Annotated[float, Parameter(help="Seconds between refreshes.")] = 1.0,
    control: Control = None,
    json: Json = False,
) -> None:
    """Show the registry, the servers, each version's stage and latency, each variant's share and cost."""
    if not 0.1 <= interval <= 3600:
        raise InvalidRequest(f"--interval {interval:g}: expected 0.1 to 3600 seconds")
    with Operator(resolve("control", control)) as operator:
        if not watch:
            answer = operator.status()
            if json:
                output.print_json(answer)
            else:
                output.console().print(view(answer))
        elif json:
            while True:
                output.print_json(operator.status(), indent=None)
                time.sleep(interval)
        else:
            _watch(operator, interval)


def _watch(operator: Operator, interval: float) -> None:
    with Live(Text("asking ..."), console=output.console(), auto_refresh=False, screen=False) as live:
        last: RenderableType = Text("")
        while True:
            try:
                last = view(operator.status())
                live.update(last, refresh=True)
            except (Unavailable, DeadlineExceeded) as error:
                # A control plane that restarts is no reason to stop looking.
                live.update(Group(last, Text(explained(error), style="red")), refresh=True)
            time.sleep(interval)


def view(answer: pb.GetStatusResponse) -> RenderableType:
    """The answer as tables."""
    registry = answer.registry
    state = "reachable" if registry.reachable else ": ".join(filter(None, ("unreachable", registry.error)))
    read = "not read yet" if registry.age_seconds < 0 else f"read {registry.age_seconds:.1f} s ago"
    head = Text.assemble(
        f"snapshot {answer.snapshot_version}   registry {registry.uri} ",
        (state, "green" if registry.reachable else "red"),
        f", {read}",
    )
    return Group(
        head, Text(), _versions(answer), *traffic_view(answer), Text(), _nodes(answer), *_reasons(answer)
    )


def _versions(answer: pb.GetStatusResponse) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("model", "version", "stage", "routes"):
        table.add_column(name, overflow="fold", no_wrap=name != "model")
    for name in ("nodes", "ok", "failed", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in answer.models:
        for version in model.versions:
            routes = [one for one in model.routes if one.version == version.version]
            failed = Text(str(version.failed), style="red" if version.failed else "")
            table.add_row(
                Text(model.name),
                version.version,
                Text(version.stage, style="red" if version.stage == "failed" else ""),
                ", ".join(f"{one.variant} {one.weight}" for one in routes),
                str(version.nodes_ready),
                str(version.succeeded),
                failed,
                *(
                    f"{value:.2f}" if value else "-"
                    for value in (version.p50_ms, version.p95_ms, version.p99_ms)
                ),
            )
    return table if answer.models else Text("no models: publish one with `hedgerow publish`")


def _nodes(answer: pb.GetStatusResponse) -> RenderableType:
    table = Table("node", "region", "snapshot", "state", "release", box=None, pad_edge=False)
    for node in answer.nodes:
        state = Text("connected", style="green") if node.connected else Text("away", style="red")
        if node.last_nack:
            state.append("; refused", style="red")
        table.add_row(Text(node.node), node.region, str(node.snapshot_version), state, node.release)
    return table if answer.nodes else Text("no servers connected")


def _reasons(answer: pb.GetStatusResponse) -> list[RenderableType]:
    """Below the tables, where a sentence has the whole width."""
    lines = [
        (f"{model.name} {version.version}".rstrip(), version.stage, version.reason)
        for model in answer.models
        for version in model.versions
        if version.reason
    ]
    lines += [(node.node, "refused", node.last_nack) for node in answer.nodes if node.last_nack]
    if not lines:
        return []
    return [Text(), *(Text.assemble((f"{who}: {what}: ", "red"), why) for who, what, why in lines)]

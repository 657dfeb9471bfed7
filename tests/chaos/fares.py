"""A model that is asked by routes and kinds of ticket, its fallback rules, and what is right.

    fare = distance of the route, a feature + surcharge of the kind, a table in the model

A kind that is not in the table makes every run with it fail. The next version has a longer table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from onnx import TensorProto, helper

MODEL, VIEW = "fares", "routes@1"
#: What callers name themselves, in the request log.
CALLER = "traveller"
#: Seconds, of the view.
TTL, STALE_TTL = 0.5, 6.0
#: Distance of a route that nothing young enough is known of; and a route that the store does not have.
DEFAULT, NOWHERE = -1.0, "nowhere"
DISTANCES = {f"route-{number}": 100.0 + number for number in range(20)} | {NOWHERE: DEFAULT}
#: Kinds of ticket that version 1 has in its table, and those that version 2 has besides.
OLD_KINDS, NEW_KINDS = range(10), range(10, 20)

_VIEW = {
    "name": "routes",
    "version": 1,
    "entity": [{"name": "route", "datatype": "BYTES"}],
    "fields": [{"name": "distance", "datatype": "FP32", "default": DEFAULT}],
    "ttl": TTL,
    "stale_ttl": STALE_TTL,
}
SERVING: dict[str, Any] = {
    "features": {
        "views": [_VIEW],
        "inputs": [{"input": "x", "columns": [{"view": VIEW}, {"request": {"name": "kind"}}]}],
    },
    "fallback": {
        "rules": [
            {"name": "by_distance", "when": "distance >= 0.0", "outputs": {"fare": "distance * 2.0 + kind"}},
            {"name": "flat", "outputs": {"fare": "5.0 + kind"}},
        ]
    },
}


def write_model(path: Path, version: int) -> Path:
    """Version 1 or 2."""
    kinds = len(OLD_KINDS) if version == 1 else len(OLD_KINDS) + len(NEW_KINDS)
    return zoo.save(
        path,
        [
            helper.make_node("Split", ["x"], ["distance", "kind"], axis=1),
            helper.make_node("Cast", ["kind"], ["index"], to=TensorProto.INT64),
            helper.make_node("GatherND", ["surcharges", "index"], ["surcharge"]),
            helper.make_node("Add", ["distance", "surcharge"], ["fare"]),
        ],
        [zoo.tensor("x", ["batch", 2])],
        [zoo.tensor("fare", ["batch", 1])],
        {"surcharges": _surcharges(version)[:kinds, None]},
    )


def _surcharges(version: int) -> np.ndarray:
    return 1000.0 * version + 10.0 * np.arange(20, dtype=np.float32)


def write_store(directory: Path) -> tuple[Path, Path]:
    """The view's definition and the routes' values, as files to apply and load."""
    import json

    view, values = directory / "views.yaml", directory / "values.csv"
    view.write_text(json.dumps(_VIEW))
    rows = "".join(f"{route},{distance}\n" for route, distance in DISTANCES.items() if route != NOWHERE)
    values.write_text("route,distance\n" + rows)
    return view, values


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request.

    Attributes:
        due: When it was to be sent, on the monotonic clock.
        sent: When it was.
        replied: When it ended.
        route: That was asked for.
        kind: As well.
        error: The gRPC status, if that is not OK.
        outcome: primary, hedge, failover or fallback.
        features: fresh, stale or default.
        rule: That answered.
        version: Of the model.
        fare: The number.
    """

    due: float
    sent: float
    replied: float
    route: str
    kind: int
    error: str = ""
    outcome: str = ""
    features: str = ""
    rule: str = ""
    version: str = ""
    fare: float = 0.0

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.error:
            return self.error
        known = self.features in {"fresh", "stale"}
        if not known and self.features != "default":
            return f"says {self.features!r}"
        if known and self.route == NOWHERE:
            return "knows a route that is not there"
        distance = DISTANCES[self.route] if known else DEFAULT
        if self.outcome == "fallback":
            rule, fare = ("by_distance", distance * 2 + self.kind) if known else ("flat", 5.0 + self.kind)
        else:
            rule, fare = "", distance + float(_surcharges(int(self.version))[self.kind])
        if self.rule != rule:
            return f"says rule {self.rule!r}, it should be {rule!r}"
        if self.fare != fare:
            return f"says {self.fare} for {fare}"
        return ""

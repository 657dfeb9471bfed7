"""What the scenes of the demo share, and how they are played."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hedgerow_bench.load import Load
from rich.console import Console

from hedgerow_local.endpoints import Endpoints
from hedgerow_local.stack import Stack

#: What a scene contributes to report.json; nested mappings are merged.
Contribution = Mapping[str, Any]


class SceneFailed(Exception):
    """The demo cannot go on; the message says what was expected and what to look at."""


@dataclass(slots=True)
class Stage:
    """Holds what the scenes have built so far.

    Attributes:
        root: Everything is written here.
        console: For people.
        exits: Closes what scenes opened, last first.
        stack: Running after the scene `start`.
        load: Under way after the scene `load`.
        marks: What happened under load, and when: seconds of the monotonic clock.
        report: What report.json will hold.
        complaints: What went wrong without stopping the demo; with one, it exits with 1.
    """

    root: Path
    console: Console
    exits: AsyncExitStack
    stack: Stack | None = None
    load: Load | None = None
    marks: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def endpoints(self) -> Endpoints:
        """Where the running stack answers."""
        assert self.stack is not None
        assert self.stack.endpoints is not None
        return self.stack.endpoints

    @property
    def models(self) -> Path:
        """Where the trained versions are."""
        return self.root / "models"

    def tell(self, line: str, *, style: str = "") -> None:
        """Prints a line with the time since the demo's start."""
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/]  ", end="")
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def mark(self, name: str) -> float:
        """Notes that something happens now."""
        self.marks[name] = time.monotonic()
        return self.marks[name]

    def expect(self, holds: bool, complaint: str) -> None:  # noqa: FBT001 - reads as a sentence
        """Notes a complaint unless something holds."""
        if not holds:
            self.complaints.append(complaint)
            self.tell(complaint, style="bold red")


class Scene(Protocol):
    """One step of the demo."""

    @property
    def name(self) -> str:
        """In report.json."""
        ...

    @property
    def title(self) -> str:
        """For people."""
        ...

    async def run(self, stage: Stage) -> Contribution:
        """Plays the scene.

        Raises:
            SceneFailed: The demo cannot go on.
        """
        ...


async def play(scenes: Sequence[Scene], stage: Stage) -> None:
    """Plays the scenes in order and merges what they report; `stage.report["scenes"]` lists them."""
    played = stage.report.setdefault("scenes", [])
    for number, scene in enumerate(scenes, 1):
        stage.console.print(f"\n[bold]{number}. {scene.title}[/]", highlight=False)
        began = time.monotonic()
        entry = {"name": scene.name, "title": scene.title, "ok": False, "seconds": 0.0}
        played.append(entry)
        complaints = len(stage.complaints)
        try:
            merge(stage.report, await scene.run(stage))
            entry["ok"] = len(stage.complaints) == complaints
        finally:
            entry["seconds"] = round(time.monotonic() - began, 2)


def merge(report: dict[str, Any], contribution: Contribution) -> None:
    """Adds to a report; mappings are merged, everything else is replaced."""
    for key, value in contribution.items():
        if isinstance(value, Mapping):
            merge(report.setdefault(key, {}), value)
        else:
            report[key] = value

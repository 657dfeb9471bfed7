"""Models named on the command line, for a server without a control plane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from hedgerow_protos.hedgerow_control_pb2 import Model, ModelVersion, Route, ServingSpec, Snapshot
from hedgerow_protos.serving_spec import SpecError, parse

from hedgerow_server.engine.desired import SnapshotRefused
from hedgerow_server.errors import FailedPrecondition, NotFound

log = logging.getLogger(__name__)

#: A model file has no version of its own; the protocol needs an integer.
VERSION = "1"

Apply = Callable[[Snapshot], Awaitable[None]]
#: Loads a model in a limited child process; returns why it cannot be served, or "".
Trial = Callable[[Path, str, ServingSpec], Awaitable[str]]


class LocalModels:
    """Holds which of the named models are wanted, and turns them into snapshots.

    Args:
        paths: model name -> its ONNX file; `serving.yaml` may lie beside it.
        trial: tries a model before it comes near this process.
    """

    def __init__(self, paths: Mapping[str, Path], trial: Trial) -> None:
        self._paths = dict(paths)
        self._apply: Apply
        self._trial = trial
        self._wanted: dict[str, ModelVersion] = {}
        self._snapshots = 0
        #: Whether the models named at the start came into force. An operator may unload them later.
        self.complete = False
        self._turn = asyncio.Lock()

    async def resolve(self, name: str, version: ModelVersion) -> Path:
        """The directory of a model's files."""
        del version
        return self._paths[name].parent

    async def load_all(self, apply: Apply) -> None:
        """Loads every named model.

        Args:
            apply: brings a snapshot into force, now and at every later change.

        Raises:
            FailedPrecondition: one cannot be served; says which and why.
        """
        self._apply = apply
        async with self._turn:
            # A trial is a process that mostly imports; two at a time halve the start of a server with many.
            places = asyncio.Semaphore(2)

            async def examine(name: str, path: Path) -> ModelVersion:
                async with places:
                    return await self._examine(name, path)

            versions = await asyncio.gather(*(examine(name, path) for name, path in self._paths.items()))
            await self._bring(dict(zip(self._paths, versions, strict=True)))

    async def load(self, name: str) -> None:
        """Loads a named model, or what its file holds now.

        Raises:
            NotFound: it was not named at the start.
            FailedPrecondition: it cannot be served; what was in force stays.
        """
        path = self._paths.get(name)
        if path is None:
            raise NotFound(
                f"this server was not started with a model {name[:64]!r}; "
                f"it knows {', '.join(sorted(self._paths)) or 'none'}. Start it with --model {name[:64]}=PATH"
            )
        async with self._turn:
            await self._bring({**self._wanted, name: await self._examine(name, path)})

    async def unload(self, name: str) -> None:
        """Retires a model; requests under way are answered.

        Raises:
            NotFound: it is not loaded.
        """
        async with self._turn:
            if name not in self._wanted:
                raise NotFound(f"model {name[:64]!r} is not loaded")
            await self._bring({other: version for other, version in self._wanted.items() if other != name})

    async def _examine(self, name: str, path: Path) -> ModelVersion:
        # Each load is a content of its own: the file may have changed.
        digest = f"local:{self._snapshots + 1}:{name}"
        serving = ServingSpec()
        beside = path.with_name("serving.yaml")
        try:
            if beside.is_file():
                serving = parse(beside.read_text(), source=str(beside))
        except (SpecError, OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"model {name!r} is refused: {error}") from None
        reason = await self._trial(path.parent, path.name, serving)
        if reason:
            raise FailedPrecondition(f"model {name!r} ({path}) is refused: {reason}")
        return ModelVersion(version=VERSION, digest=digest, path=path.name, serving=serving)

    async def _bring(self, wanted: dict[str, ModelVersion]) -> None:
        self._snapshots += 1
        snapshot = Snapshot(
            version=self._snapshots,
            models=[
                Model(
                    name=name,
                    versions=[version],
                    routes=[Route(variant="champion", version=VERSION, weight=100)],
                )
                for name, version in wanted.items()
            ],
        )
        try:
            await self._apply(snapshot)
        except SnapshotRefused as refused:
            raise FailedPrecondition(f"model {refused.model!r} is refused: {refused.reason}") from None
        self._wanted = wanted
        self.complete = True
        log.info("serving %s", ", ".join(sorted(wanted)) or "no model")

"""The rollout loop's steps: real state file, store and preparation; files and trials as the test says."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from pathlib import Path

import pytest
from hedgerow_control.artifacts.fetch import Limits
from hedgerow_control.artifacts.preparer import Preparer
from hedgerow_control.artifacts.store import ArtifactStore
from hedgerow_control.artifacts.trial import TrialRefused
from hedgerow_control.registry.desired import DesiredModel, DesiredState, DesiredVersion
from hedgerow_control.rollout.loop import Rollout
from hedgerow_control.rollout.policy import ModelView, Override
from hedgerow_control.rollout.state import Refusal, StateFile
from hedgerow_control.snapshots.hub import Hub
from hedgerow_control.snapshots.node import Node
from hedgerow_protos import hedgerow_control_pb2 as pb

HANG = 20


def desired(newest: str = "", **aliases: str) -> DesiredState:
    """One model `m` with these aliases."""
    numbers = {*aliases.values(), *filter(None, [newest])}
    versions = {number: DesiredVersion(number, f"store:/{number}") for number in numbers}
    return DesiredState({"m": DesiredModel("m", aliases, {}, versions)})


class OneFile:
    """An artifact store with a model file that differs from version to version."""

    def __init__(self, content: bytes):
        self.content = content

    def list(self, path):
        return [] if path else [("model.onnx", False, len(self.content))]

    def download(self, path, directory):
        (directory / path).write_bytes(self.content)


class Bench:
    """A rollout without servers. `verdicts` holds what the trial of a version says; None hangs."""

    def __init__(self, directory: Path):
        self.file = StateFile(directory / "state.json")
        self.store = ArtifactStore(directory / "artifacts")
        self.verdicts: dict[str, Exception | None] = {}
        self.rollout = self.start()

    def start(self) -> Rollout:
        self.preparer = Preparer(
            self.store,
            connect=lambda _name, version: OneFile(version.encode()),
            trial=self._trial,
            limits=Limits(1000, 10),
        )
        rollout = Rollout(
            state=self.file.load(),
            file=self.file,
            hub=Hub(),
            preparer=self.preparer,
            store=self.store,
            retain=1,
            ack_timeout_seconds=10.0,
        )
        rollout.start()
        return rollout

    async def _trial(self, directory: Path, version: pb.ModelVersion) -> None:
        number = (directory / version.path).read_text()
        if number in self.verdicts:
            verdict = self.verdicts[number]
            if verdict is None:
                await asyncio.Event().wait()
            else:
                raise verdict

    async def until(self, number: str, stage: str) -> None:
        async with asyncio.timeout(HANG):
            while self.stage(number) != stage:  # noqa: ASYNC110  (threads tell nothing by themselves)
                await asyncio.sleep(0.001)

    def stage(self, number: str) -> str:
        state = self.preparer.states.get(("m", number))
        return state.stage if state else ""

    def champion(self) -> str | None:
        routes = [r for m in self.rollout.hub.snapshot.models for r in m.routes if r.variant == "champion"]
        return routes[0].version if routes else None

    async def serve(self, number: str) -> None:
        """Brings a version to the champion's route, with no server to wait for."""
        self.rollout.desire(desired(champion=number))
        await self.rollout.step()
        await self.until(number, "verified")
        for _ in range(3):
            await self.rollout.step()
        assert self.champion() == number


@pytest.fixture
async def bench(tmp_path: Path):
    bench = Bench(tmp_path)
    yield bench
    await bench.preparer.close()


async def test_a_version_that_failed_before_it_had_a_role_is_tried_again_when_it_gets_one(bench: Bench):
    """It may have been registered before all of its files were there."""
    await bench.serve("1")
    bench.verdicts["2"] = TrialRefused("half of it is missing")
    bench.rollout.desire(desired(champion="1", newest="2"))
    await bench.rollout.step()
    await bench.until("2", "failed")
    del bench.verdicts["2"]
    bench.rollout.desire(desired(champion="2", newest="2"))
    await bench.rollout.step()
    await bench.until("2", "verified")


async def test_an_alias_moved_back_to_a_former_champion_needs_no_new_trial(bench: Bench):
    """Else it would be downloaded and tried before it answers, though its files are here."""
    for number in "123":
        await bench.serve(number)
    bench.rollout.desire(desired(champion="1"))
    await bench.rollout.step()
    assert bench.stage("1") == "verified"


async def test_a_failed_version_is_not_tried_again_while_its_role_stays(bench: Bench):
    bench.verdicts["1"] = TrialRefused("custom operator")
    bench.rollout.desire(desired(champion="1"))
    await bench.rollout.step()
    await bench.until("1", "failed")
    bench.rollout.desire(desired(champion="1", shadow="1"))
    await bench.rollout.step()
    assert bench.stage("1") == "failed"


async def test_a_version_that_servers_refused_is_tried_again_when_an_alias_is_set_on_it_anew(bench: Bench):
    await bench.serve("1")
    bench.rollout.desire(desired(champion="2", newest="2"))
    await bench.rollout.step()
    await bench.until("2", "verified")
    digest = bench.preparer.states["m", "2"].prepared.digest
    bench.rollout.state.refusals.append(Refusal("m", "2", digest, "no room"))
    for aliases in ({"champion": "2", "shadow": "1"}, {"champion": "1"}):
        bench.rollout.desire(desired(newest="2", **aliases))
        await bench.rollout.step()
        assert bench.rollout.state.refusals
        assert bench.champion() == "1"
    bench.rollout.desire(desired(champion="2", newest="2"))
    assert not bench.rollout.state.refusals
    for _ in range(3):
        await bench.rollout.step()
    assert bench.champion() == "2"


async def test_the_first_snapshot_does_not_wait_for_a_version_without_a_role(bench: Bench):
    bench.verdicts["2"] = None
    bench.rollout.desire(desired(champion="1", newest="2"))
    await bench.rollout.step()
    await bench.until("1", "verified")
    await bench.until("2", "fetched")
    await bench.rollout.step()
    assert bench.champion() == "1"


async def test_a_rollback_that_ended_has_ended_after_a_kill_too(bench: Bench):
    """Else an alias set on the version while the control plane was down would be taken back."""
    await bench.serve("1")
    await bench.serve("2")

    def choose(view: ModelView) -> Override:
        return Override(bad=view.wanted["champion"], keep="1")

    await bench.rollout.override("m", choose)
    assert bench.champion() == "1"
    assert bench.file.load().models["m"].override == Override("2", "1")
    bench.rollout.desire(desired(champion="1"))
    await bench.rollout.step()
    assert bench.file.load().models["m"].override is None


async def test_a_server_with_a_newer_snapshot_is_outnumbered_even_while_ours_is_being_saved(bench: Bench):
    saving, go_on = threading.Event(), threading.Event()
    save = bench.file.save

    def slow(encoded: bytes) -> None:
        saving.set()
        go_on.wait(HANG)
        save(encoded)

    await bench.serve("1")
    await bench.serve("2")
    bench.file.save = slow
    bench.rollout.desire(desired(champion="1"))
    step = asyncio.create_task(bench.rollout.step())
    await asyncio.to_thread(saving.wait, HANG)
    bench.rollout.hello(500)
    go_on.set()
    await step
    await bench.rollout.step()
    assert bench.rollout.hub.snapshot.version > 500
    assert bench.champion() == "1"


async def test_a_full_disk_only_puts_off_what_was_to_be_published(bench: Bench):
    await bench.serve("1")
    bench.rollout.hello(500)
    save = bench.file.save

    def full(encoded: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    bench.file.save = full
    with pytest.raises(OSError, match="no space"):
        await bench.rollout.step()
    assert bench.rollout.hub.snapshot.version < 500
    bench.file.save = save
    await bench.rollout.step()
    assert bench.rollout.hub.snapshot.version > 500


async def test_a_rollback_does_not_wait_while_old_files_are_removed(bench: Bench, monkeypatch):
    await bench.serve("1")
    await bench.serve("2")
    (bench.store.root / ("0" * 64)).mkdir()
    removing, go_on = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def slow(*arguments, **options):
        removing.set()
        go_on.wait(HANG)
        rmtree(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", slow)
    pruning = asyncio.create_task(bench.rollout.prune())
    try:
        assert await asyncio.to_thread(removing.wait, HANG)
        await asyncio.wait_for(bench.rollout.override("m", lambda view: Override("2", "1")), HANG / 2)
        assert bench.champion() == "1"
    finally:
        go_on.set()
        await pruning
    assert not (bench.store.root / ("0" * 64)).exists()
    assert len(list(bench.store.root.iterdir())) == 2


async def test_a_newer_snapshot_at_a_server_does_not_break_make_before_break(bench: Bench):
    """Ours is numbered anew; what is in it, and what waits for an acknowledgement, stays."""
    await bench.serve("1")
    server = Node("a/0")
    server.hello(pb.Hello(node="a/0", snapshot_version=1), 0.0)
    sent = server.sending(bench.rollout.hub.snapshot, 0.0)
    server.ack(pb.Ack(nonce=sent.nonce))
    bench.rollout.hub.nodes["a/0"] = server
    bench.rollout.desire(desired(champion="2"))
    await bench.rollout.step()
    await bench.until("2", "verified")
    bench.rollout.hello(500)
    await bench.rollout.step()
    assert bench.rollout.hub.snapshot.version > 500
    assert bench.champion() == "1"


async def test_new_tags_of_a_version_go_out_and_move_nothing(bench: Bench):
    await bench.serve("1")
    routes = list(bench.rollout.hub.snapshot.models[0].routes)
    tagged = desired(champion="1")
    tagged.models["m"].versions["1"].tags["cost_per_1k"] = "0.25"
    bench.rollout.desire(tagged)
    before = bench.rollout.hub.snapshot.version
    await bench.rollout.step()
    (model,) = bench.rollout.hub.snapshot.models
    assert bench.rollout.hub.snapshot.version == before + 1
    assert list(model.routes) == routes
    assert dict(model.versions[0].tags) == {"cost_per_1k": "0.25"}

"""What may come out of an artifact store, and where it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import threading
import tracemalloc
from pathlib import Path

import grpc
import pytest
from hedgerow_control.artifacts import preparer as preparing
from hedgerow_control.artifacts.fetch import ArtifactRefused, FetchFailed, Limits, fetch, onnx_entry
from hedgerow_control.artifacts.preparer import Preparation, Preparer
from hedgerow_control.artifacts.service import MAX_STREAMS, ArtifactService
from hedgerow_control.artifacts.store import ArtifactStore
from hedgerow_control.artifacts.trial import TrialFailed, TrialRefused
from hedgerow_protos import hedgerow_control_pb2 as pb
from hedgerow_protos import manifest

LIMITS = Limits(max_bytes=10_000, max_files=8)


class Folder:
    """An artifact store on a directory, or one that misbehaves as told."""

    def __init__(self, root: Path, files: dict[str, bytes]):
        self.root = root
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        self.downloaded: list[str] = []

    def list(self, path):
        folder = self.root / path if path else self.root
        return [
            (str(e.relative_to(self.root)), e.is_dir(), 0 if e.is_dir() else e.stat().st_size)
            for e in sorted(folder.iterdir())
        ]

    def download(self, path, directory):
        self.downloaded.append(path)
        (directory / path).write_bytes((self.root / path).read_bytes())


@pytest.fixture
def target(tmp_path):
    directory = tmp_path / "target"
    directory.mkdir()
    return directory


def test_the_model_its_data_and_its_spec_are_fetched_and_nothing_of_mlflows(tmp_path, target):
    source = Folder(
        tmp_path / "source",
        {
            "MLmodel": b"flavors: {onnx: {data: onnx/net.onnx}, python_function: {}}",
            "conda.yaml": b"x",
            "requirements.txt": b"x",
            "onnx/net.onnx": b"net",
            "onnx/net.onnx.data": b"weights",
            "onnx/serving.yaml": b"batching: {max_batch_size: 4}",
            "metadata/MLmodel": b"x",
        },
    )
    version = fetch(lambda: source, target, LIMITS)
    assert version.path == "onnx/net.onnx"
    assert [file.path for file in version.files] == [
        "onnx/net.onnx",
        "onnx/net.onnx.data",
        "onnx/serving.yaml",
    ]
    assert version.serving.batching.max_batch_size == 4
    assert version.digest == manifest.digest(version.files)


def test_the_same_files_logged_twice_have_one_digest(tmp_path):
    digests = set()
    for run in ("one", "two"):
        source = Folder(
            tmp_path / run,
            {"model.onnx": b"x", "MLmodel": f"run: {run}\nflavors: {{onnx: {{data: model.onnx}}}}".encode()},
        )
        (tmp_path / f"{run}-target").mkdir()
        digests.add(fetch(lambda source=source: source, tmp_path / f"{run}-target", LIMITS).digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.pkl": b"x"}, "there is no model.onnx"),
        ({}, "there is no model.onnx"),
        ({"MLmodel": b"flavors: {onnx: {data: /etc/passwd}}"}, "plain relative path"),
        ({"MLmodel": b"flavors: {onnx: {data: [1]}}"}, "expected a path"),
        ({"MLmodel": b"flavors: {sklearn: {}}"}, "only ONNX is served"),
        ({"MLmodel": b"flavors: ["}, "cannot be read"),
        ({"MLmodel": b"nothing"}, "cannot be read"),
        ({"MLmodel": b"flavors: {onnx: {data: gone.onnx}}", "model.onnx": b"x"}, "there is no gone.onnx"),
        ({"model.onnx": b"x" * 10_001}, "max_bytes allows 10000"),
        ({f"{i}.onnx": b"x" for i in range(9)}, "more than 8 files"),
        ({"model.onnx": b"x", "serving.yaml": b"nope: 1"}, "unknown key 'nope'"),
        ({"model.onnx": b"x", "serving.yaml": b"\xff"}, "utf-8"),
    ],
)
def test_files_that_cannot_be_served_are_refused_with_the_reason(tmp_path, target, files, reason):
    (tmp_path / "source").mkdir()
    with pytest.raises(ArtifactRefused) as caught:
        fetch(lambda: Folder(tmp_path / "source", files), target, LIMITS)
    assert reason in str(caught.value)


def test_pickles_are_never_opened():
    with pytest.raises(ArtifactRefused):
        onnx_entry("flavors: !!python/object/apply:os.system ['true']")


class Hostile(Folder):
    """Lists what it does not have."""

    def list(self, path):
        return [("../outside", False, 1), ("model.onnx", False, 1)]


def test_a_store_that_lists_a_path_outside_is_refused(tmp_path, target):
    (tmp_path / "source").mkdir()
    with pytest.raises(ArtifactRefused, match="outside"):
        fetch(lambda: Hostile(tmp_path / "source", {}), target, LIMITS)
    assert not (tmp_path / "outside").exists()


class Linking(Folder):
    """Downloads by making a hard link."""

    def download(self, path, directory):
        os.link(self.root / path, directory / path)


def test_a_store_that_plants_a_hard_link_is_refused(tmp_path, target):
    with pytest.raises(ArtifactRefused, match="hard link"):
        fetch(lambda: Linking(tmp_path / "source", {"model.onnx": b"x"}), target, LIMITS)


def test_a_store_that_fails_is_not_held_against_the_version(tmp_path, target):
    def unreachable():
        raise ConnectionError("no route to host")

    with pytest.raises(FetchFailed, match="no route to host"):
        fetch(unreachable, target, LIMITS)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def put(store: ArtifactStore, content: bytes) -> pb.ModelVersion:
    with store.incoming() as directory:
        (directory / "model.onnx").write_bytes(content)
        files = manifest.scan(directory)
        digest = manifest.digest(files)
        store.keep(directory, digest)
    return pb.ModelVersion(digest=digest, files=files, path="model.onnx")


def test_kept_files_are_private_and_found_by_their_digest(store):
    version = put(store, b"abc")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.directory(version.digest).stat().st_mode) == 0o700
    with store.open(version.digest, "model.onnx") as file:
        assert file.read() == b"abc"
    assert store.holds(version)
    assert put(store, b"abc").digest == version.digest
    assert [entry.name for entry in store.root.iterdir()] == [version.digest.removeprefix("sha256:")]


def test_files_that_changed_on_disk_are_noticed(store):
    version = put(store, b"abc")
    (store.directory(version.digest) / "model.onnx").write_bytes(b"ab")
    assert not store.holds(version)
    assert store.holds(put(store, b"abc"))


@pytest.mark.parametrize(
    ("digest", "path"), [("sha256:../x", "a"), (f"sha256:{'0' * 64}", "../a"), ("", "a")]
)
def test_nothing_outside_the_store_can_be_opened(store, digest, path):
    with pytest.raises(manifest.ManifestError):
        store.open(digest, path)


def test_a_link_planted_in_the_store_is_not_followed(store):
    version = put(store, b"abc")
    (store.directory(version.digest) / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        store.open(version.digest, "link")


def test_what_nobody_needs_is_pruned_and_leftovers_go_at_the_start(store):
    kept, dropped = put(store, b"kept"), put(store, b"dropped")
    aside = store.set_aside([kept.digest])
    assert list(aside) == [dropped.digest]
    assert store.holds(kept)
    assert not store.holds(dropped)
    store.remove(aside[dropped.digest])
    assert [entry.name for entry in store.root.iterdir()] == [kept.digest.removeprefix("sha256:")]
    leftover = store.root / ".incoming-killed"
    leftover.mkdir()
    ArtifactStore(store.root)
    assert not leftover.exists()


class Bench:
    """A preparer over folders; the trial does as told."""

    def __init__(self, store, tmp_path):
        self.folders = {("m", "1"): Folder(tmp_path / "m1", {"model.onnx": b"one"})}
        self.verdicts: list[Exception | None] = []
        self.trials = 0
        self.changed = asyncio.Event()
        self.preparer = Preparer(
            store, connect=lambda *key: self.folders[key], trial=self.trial, limits=LIMITS
        )
        self.preparer.on_change = self.changed.set

    async def trial(self, directory, version):
        self.trials += 1
        assert (directory / version.path).is_file()
        verdict = self.verdicts.pop(0) if self.verdicts else None
        if verdict is not None:
            raise verdict

    async def until(self, key, stage) -> Preparation:
        while self.preparer.states[key].stage != stage:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 20)
        return self.preparer.states[key]


@pytest.fixture
async def bench(store, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "FIRST_RETRY_SECONDS", 0.001)
    bench = Bench(store, tmp_path)
    yield bench
    await bench.preparer.close()


async def test_a_wanted_version_is_fetched_tried_and_kept(bench, store):
    bench.preparer.want({("m", "1"): "s"})
    state = await bench.until(("m", "1"), "verified")
    assert state.prepared.version == "1"
    assert store.holds(state.prepared)


async def test_a_refused_version_is_not_tried_again_until_its_source_changes(bench):
    bench.verdicts = [TrialRefused("custom op")]
    bench.preparer.want({("m", "1"): "s"})
    state = await bench.until(("m", "1"), "failed")
    assert state.reason == "custom op"
    bench.preparer.want({("m", "1"): "s"})
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.trials == 1
    bench.preparer.want({("m", "1"): "another source"})
    await bench.until(("m", "1"), "verified")


async def test_what_merely_went_wrong_is_tried_again(bench):
    bench.verdicts = [TrialFailed("no verdict"), TrialFailed("no verdict")]
    bench.preparer.want({("m", "1"): "s"})
    state = await bench.until(("m", "1"), "verified")
    assert state.attempts == 3


async def test_a_version_no_longer_wanted_is_stopped_and_forgotten(bench, store):
    started = asyncio.Event()

    async def endless(directory, version):
        started.set()
        await asyncio.Event().wait()

    bench.preparer._trial = endless
    bench.preparer.want({("m", "1"): "s"})
    await asyncio.wait_for(started.wait(), 20)
    tasks = list(bench.preparer._tasks.values())
    bench.preparer.want({})
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.preparer.states == {}
    assert list(store.root.iterdir()) == []


async def test_abandoned_downloads_hold_nothing_up_and_leave_nothing_behind(bench, store):
    """A store that hangs must not keep the state from being saved, nor fill the disk when it wakes up."""
    wake = threading.Event()

    class Hanging(Folder):
        def download(self, path, directory):
            wake.wait(60)
            directory.mkdir(exist_ok=True)
            super().download(path, directory)

    source = bench.folders["m", "1"]
    for number in range(100):
        bench.folders["hang", str(number)] = Hanging(source.root, {})
    try:
        for number in range(100):
            bench.preparer.want({("hang", str(number)): "s"})
            await asyncio.sleep(0.01)
        bench.preparer.want({})
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 20)
    finally:
        wake.set()
    async with asyncio.timeout(20):
        while list(store.root.iterdir()) or bench.preparer.busy:  # noqa: ASYNC110  (threads tell nothing)
            await asyncio.sleep(0.01)
    bench.preparer.want({("m", "1"): "s"})
    await bench.until(("m", "1"), "verified")


async def test_a_reason_has_a_bounded_length(bench):
    bench.verdicts = [TrialRefused("x" * 1_000_000)]
    bench.preparer.want({("m", "1"): "s"})
    assert len((await bench.until(("m", "1"), "failed")).reason) < 3000


def test_a_huge_serving_yaml_is_refused_before_it_is_read(tmp_path, target):
    source = Folder(tmp_path / "source", {"model.onnx": b"x"})
    with (source.root / "serving.yaml").open("wb") as file:
        file.truncate(64 << 20)
    limits = Limits(max_bytes=1 << 30, max_files=8)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactRefused, match=r"serving\.yaml"):
            fetch(lambda: CopyingFolder(source.root, {}), target, limits)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class CopyingFolder(Folder):
    """Downloads without holding the file in memory."""

    def download(self, path, directory):
        shutil.copyfile(self.root / path, directory / path)


def test_an_mlmodel_that_is_no_text_is_refused_for_good(tmp_path, target):
    source = Folder(tmp_path / "source", {"MLmodel": b"\xff\xfe", "model.onnx": b"x"})
    with pytest.raises(ArtifactRefused, match="MLmodel"):
        fetch(lambda: source, target, LIMITS)


class Caller:
    """What a gRPC handler sees of its caller."""

    async def abort(self, code, details):
        raise Aborted(code, details)


class Aborted(Exception):
    """The call ended with a status."""


async def received(service, digest, path) -> bytes:
    request = pb.FetchFileRequest(digest=digest, path=path)
    return b"".join([part.chunk async for part in service.FetchFile(request, Caller())])


def open_below(directory: Path) -> list[Path]:
    """What this process has open there."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # iterdir's own
            targets.append(descriptor.readlink())
    return [target for target in targets if target.is_relative_to(directory)]


async def test_what_is_no_file_is_not_found(store):
    with store.incoming() as directory:
        (directory / "onnx").mkdir()
        (directory / "onnx" / "net.onnx").write_bytes(b"abc")
        digest = manifest.digest(manifest.scan(directory))
        store.keep(directory, digest)
    service = ArtifactService(store)
    assert await received(service, digest, "onnx/net.onnx") == b"abc"
    for path in ("onnx", "onnx/net", "gone"):
        with pytest.raises(Aborted) as caught:
            await received(service, digest, path)
        assert caught.value.args[0] is grpc.StatusCode.NOT_FOUND
        assert "Errno" not in caught.value.args[1]
    assert not open_below(store.root)


async def test_a_large_fleet_waits_for_its_turn_and_is_not_refused(store):
    """A server that cannot fetch refuses the snapshot, and the version would fail for all of them."""
    version = put(store, b"x" * (3 << 20))
    service = ArtifactService(store)
    contents = await asyncio.gather(
        *(received(service, version.digest, "model.onnx") for _ in range(MAX_STREAMS * 2))
    )
    assert {len(content) for content in contents} == {3 << 20}


async def test_streams_that_are_broken_off_leave_no_file_open(store):
    version = put(store, b"x" * (8 << 20))
    service = ArtifactService(store)
    for delay in range(20):
        call = asyncio.create_task(received(service, version.digest, "model.onnx"))
        await asyncio.sleep(delay / 4000)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(20):
        while open_below(store.root):  # noqa: ASYNC110  (threads tell nothing)
            await asyncio.sleep(0.01)

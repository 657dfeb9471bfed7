"""The store of model files: whole and verified, or not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fleet import CancelledAt, Source, version_of
from hedgerow_protos.hedgerow_control_pb2 import File, ModelVersion
from hedgerow_server.engine import incoming
from hedgerow_server.engine.files import ArtifactError, ArtifactRefused, ArtifactStore

FILES = {"model.onnx": b"a model of some bytes", "weights/part.bin": b"\0" * 32}
VERSION = version_of(FILES)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def store(directory):
    with_locks = ArtifactStore(directory, lock_seconds=0.001)
    yield with_locks
    with_locks.close()


def found(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


async def refuses(store: ArtifactStore, version: ModelVersion, source: Source, text: str) -> None:
    """The version is refused, and nothing of it stays."""
    with pytest.raises(ArtifactError, match=text):
        await store.ensure(version, source.fetch)
    directory = store._directory
    assert not (directory / version.digest[7:]).exists()
    assert not leftovers(directory)


async def test_files_are_fetched_once_and_kept_private(store, directory):
    source = Source(FILES)
    path = await store.ensure(VERSION, source.fetch)
    assert found(path) == FILES
    assert await store.ensure(VERSION, source.fetch) == path
    assert sorted(source.fetched) == sorted(FILES)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (path / "model.onnx").stat().st_mode & 0o777 == 0o600


async def test_another_process_start_verifies_and_does_not_fetch(store, directory):
    await store.ensure(VERSION, Source(FILES).fetch)
    store.close()
    again = Source(FILES)
    path = await ArtifactStore(directory).ensure(VERSION, again.fetch)
    assert found(path) == FILES
    assert not again.fetched


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "model.onnx").write_bytes(b"a model of some bytez"),
        lambda path: (path / "weights/part.bin").unlink(),
        lambda path: (path / "extra").write_bytes(b""),
        lambda path: os.link(path / "model.onnx", path.parent / "elsewhere"),
        lambda path: ((path / "model.onnx").unlink(), (path / "model.onnx").symlink_to("/etc/hostname")),
    ],
    ids=["changed", "missing", "extra", "hard link", "symbolic link"],
)
async def test_files_that_changed_since_are_fetched_anew(store, directory, damage):
    path = await store.ensure(VERSION, Source(FILES).fetch)
    store.close()
    damage(path)
    source = Source(FILES)
    path = await ArtifactStore(directory).ensure(VERSION, source.fetch)
    assert found(path) == FILES
    assert source.fetched
    assert (path / "model.onnx").lstat().st_nlink == 1


async def test_a_corrupt_chunk_is_noticed(store):
    source = Source(FILES | {"weights/part.bin": b"\0" * 31 + b"\1"})
    await refuses(store, VERSION, source, "arrived with sha256")


async def test_a_file_that_ends_early_is_noticed(store):
    await refuses(store, VERSION, Source(FILES | {"model.onnx": b"a model"}), "ended after 7 of 21 bytes")


async def test_a_file_that_is_too_long_is_cut_off_while_it_comes(store):
    source = Source(FILES | {"model.onnx": FILES["model.onnx"] * 1000})
    await refuses(store, VERSION, source, "longer than its 21 bytes")


async def test_after_a_failure_the_next_try_succeeds(store):
    await refuses(store, VERSION, Source(FILES | {"model.onnx": b""}), "ended after 0")
    assert found(await store.ensure(VERSION, Source(FILES).fetch)) == FILES


async def test_a_source_that_stops_sending_is_given_up(directory):
    async def silent(digest, path):
        yield b"a mod"
        await asyncio.Event().wait()

    store = ArtifactStore(directory, stall_seconds=0.05)
    with pytest.raises(ArtifactError, match="stalled after 5 of 21 bytes"):
        await store.ensure(VERSION, silent)
    assert not leftovers(directory)


@pytest.mark.parametrize(
    "path", ["../model.onnx", "/etc/model.onnx", "a/../../b", "", "a//b", "a\\b", "a\nb"]
)
async def test_paths_that_leave_the_directory_are_refused_before_anything_is_fetched(store, directory, path):
    listed = File(path=path, size=1, sha256="0" * 64)
    version = ModelVersion(version="1", digest="sha256:" + "0" * 64, files=[listed], path=path)
    source = Source({})
    with pytest.raises(ArtifactRefused):
        await store.ensure(version, source.fetch)
    assert not source.fetched
    assert not directory.exists()


async def test_a_digest_that_does_not_name_its_files_is_refused(store):
    wrong = ModelVersion()
    wrong.CopyFrom(VERSION)
    wrong.digest = "sha256:" + "0" * 64
    with pytest.raises(ArtifactRefused, match="the listed files make"):
        await store.ensure(wrong, Source(FILES).fetch)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64, "0" * 64])
async def test_a_digest_that_is_none_is_refused(store, digest):
    with pytest.raises(ArtifactRefused):
        await store.ensure(ModelVersion(version="1", digest=digest), Source({}).fetch)


async def test_a_model_that_is_not_among_its_files_is_refused(store):
    with pytest.raises(ArtifactRefused, match="not among its files"):
        await store.ensure(version_of(FILES, path="other.onnx"), Source(FILES).fetch)


async def test_a_full_disk_is_told_and_leaves_nothing(store, monkeypatch):
    """Writes go to /dev/full, where the kernel itself says ENOSPC."""
    real = os.open

    def to_full(path, flags, mode=0o777, **more):
        if str(path).endswith("model.onnx"):
            return real("/dev/full", os.O_WRONLY)
        return real(path, flags, mode, **more)

    monkeypatch.setattr(incoming.os, "open", to_full)
    await refuses(store, VERSION, Source(FILES), "no room in .* for 53 bytes")
    monkeypatch.undo()
    assert found(await store.ensure(VERSION, Source(FILES).fetch)) == FILES


async def test_a_version_larger_than_the_free_space_is_refused_before_it_is_fetched(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=52))
    source = Source(FILES)
    await refuses(store, VERSION, source, "no room in .* for 53 bytes")
    assert not source.fetched


async def test_what_a_dead_process_left_is_cleared_away(store, directory):
    half = directory / f".incoming-{VERSION.digest[7:]}" / "weights"
    half.mkdir(parents=True)
    (half / "part.bin").write_bytes(b"half")
    assert found(await store.ensure(VERSION, Source(FILES).fetch)) == FILES
    assert not leftovers(directory)


async def test_many_tasks_share_one_fetch(store):
    source = Source(FILES)
    paths = await asyncio.gather(*(store.ensure(VERSION, source.fetch) for _ in range(10)))
    assert len(set(paths)) == 1
    assert sorted(source.fetched) == sorted(FILES)
    assert not store._turns


async def test_a_waiter_takes_over_when_the_fetching_task_is_cancelled(store):
    """Cancelling one caller never changes what the others get."""
    source = Source(FILES)
    first = asyncio.create_task(store.ensure(VERSION, source.fetch))
    second = asyncio.create_task(store.ensure(VERSION, source.fetch))
    await source.begun.wait()
    first.cancel()
    assert found(await second) == FILES
    assert first.cancelled()


async def test_the_store_is_whole_wherever_ensure_is_cancelled(tmp_path):
    """Cancels at every await in turn: no half file, no lock left, and the next call succeeds."""
    suspension = 0
    finished = False
    while not finished:
        suspension += 1
        directory = tmp_path / str(suspension)
        store = ArtifactStore(directory, lock_seconds=0.001)

        async def once(store=store, at=suspension):
            return await CancelledAt(store.ensure(VERSION, Source(FILES).fetch), at)

        task = asyncio.create_task(once())
        await asyncio.wait([task])
        finished = not task.cancelled()
        if directory.exists():
            assert not leftovers(directory)
        assert not store._turns
        if task.cancelled():
            assert not store._used
        # A second process is not kept out by anything the first left.
        other = ArtifactStore(directory, lock_seconds=0.001)
        async with asyncio.timeout(30):
            assert found(await other.ensure(VERSION, Source(FILES).fetch)) == FILES
            assert found(await store.ensure(VERSION, Source(FILES).fetch)) == FILES
        store.close()
        other.close()
    assert suspension > 10


async def test_the_least_used_files_go_and_those_in_use_stay(directory):
    versions = [version_of({"model.onnx": bytes([i])}) for i in range(6)]
    store = ArtifactStore(directory, spare=2)
    for i, version in enumerate(versions):
        await store.ensure(version, Source({"model.onnx": bytes([i])}).fetch)
        os.utime(directory / f"{version.digest[7:]}.lock", (i, i))
    other = ArtifactStore(directory)
    await other.ensure(versions[1], Source({}).fetch)
    os.utime(directory / f"{versions[1].digest[7:]}.lock", (1, 1))

    await store.keep([versions[0].digest])

    kept = {i for i, version in enumerate(versions) if (directory / version.digest[7:]).exists()}
    # 0 is in use here and 1 there; 4 and 5 are the spare ones.
    assert kept == {0, 1, 4, 5}
    assert not (directory / f"{versions[2].digest[7:]}.lock").exists()
    source = Source({"model.onnx": bytes([2])})
    assert found(await store.ensure(versions[2], source.fetch)) == {"model.onnx": b"\2"}
    assert source.fetched
    store.close()
    other.close()


async def test_two_processes_fetch_once(tmp_path):
    """Both ensure the same version at the same time; flock lets one of them fetch."""
    child = tmp_path / "child.py"
    child.write_text(
        "import asyncio, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from fleet import Source, version_of\n"
        "from hedgerow_server.engine.files import ArtifactStore\n"
        "files = {'model.onnx': b'x' * 40}\n"
        "async def main():\n"
        "    source = Source(files, chunk=1)\n"
        "    store = ArtifactStore(Path(sys.argv[1]), lock_seconds=0.001)\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    path = await store.ensure(version_of(files), source.fetch)\n"
        "    assert (path / 'model.onnx').read_bytes() == files['model.onnx']\n"
        "    print(len(source.fetched), flush=True); sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    pipe = asyncio.subprocess.PIPE
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, child, tmp_path / "artifacts", stdin=pipe, stdout=pipe
        )
        for _ in range(3)
    ]
    for process in children:
        assert await process.stdout.readline() == b"ready\n"
    for process in children:
        process.stdin.write(b"\n")
    fetched = [int(await process.stdout.readline()) for process in children]
    for process in children:
        process.stdin.close()
        assert await process.wait() == 0
    assert sum(fetched) == 1


async def test_a_writer_that_is_killed_leaves_no_lock_behind(tmp_path):
    """Kill -9 in the middle of a fetch: the next process clears up and fetches."""
    child = tmp_path / "child.py"
    child.write_text(
        "import asyncio, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from fleet import version_of\n"
        "from hedgerow_server.engine.files import ArtifactStore\n"
        "files = {'model.onnx': b'x' * 40}\n"
        "async def half(digest, path):\n"
        "    yield b'x' * 20\n"
        "    print('half', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(ArtifactStore(Path(sys.argv[1])).ensure(version_of(files), half))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, child, tmp_path / "artifacts", stdout=asyncio.subprocess.PIPE
    )
    assert await process.stdout.readline() == b"half\n"
    process.kill()
    await process.wait()
    files = {"model.onnx": b"x" * 40}
    assert leftovers(tmp_path / "artifacts")
    path = await ArtifactStore(tmp_path / "artifacts").ensure(version_of(files), Source(files).fetch)
    assert found(path) == files
    assert not leftovers(tmp_path / "artifacts")

"""The digest of a version's files, and what may be among them."""

from __future__ import annotations

import hashlib
import os

import pytest
from hedgerow_protos import manifest
from hedgerow_protos.hedgerow_control_pb2 import File
from hypothesis import given
from hypothesis import strategies as st

SHA = hashlib.sha256(b"abc").hexdigest()


def test_the_digest_is_that_of_the_sorted_lines():
    files = [File(path="model.onnx", size=3, sha256=SHA), File(path="data/w", size=3, sha256=SHA)]
    lines = f"{SHA}  3  data/w\n{SHA}  3  model.onnx\n"
    assert manifest.digest(files) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert manifest.digest(reversed(files)) == manifest.digest(files)


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\/\x7f"), min_size=1, max_size=20
)
listings = st.dictionaries(
    names.filter(lambda n: n not in {".", ".."}), st.tuples(st.integers(0, 99)), max_size=4
)


@given(listings, listings)
def test_two_listings_have_one_digest_only_when_they_are_equal(one, other):
    def name(listing):
        return manifest.digest(File(path=p, size=s, sha256=SHA) for p, (s,) in listing.items())

    assert (name(one) == name(other)) == (one == other)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        ".",
        "a\\b",
        "a\nb",
        "a\x00b",
        "\udc80",
        "x" * 1025,
    ],
)
def test_an_unsafe_path_is_refused(path):
    with pytest.raises(manifest.ManifestError):
        manifest.check_path(path)


@pytest.mark.parametrize(
    "file",
    [
        File(path="../x", size=1, sha256=SHA),
        File(path="x", size=1, sha256=SHA.upper()),
        File(path="x", size=1, sha256=SHA[:-1]),
        File(path="x", size=1, sha256=""),
    ],
)
def test_the_digest_of_a_bad_entry_is_refused(file):
    with pytest.raises(manifest.ManifestError):
        manifest.digest([file])


def test_a_path_listed_twice_is_refused():
    with pytest.raises(manifest.ManifestError, match="twice"):
        manifest.digest([File(path="x", size=1, sha256=SHA)] * 2)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:../../x", f"md5:{SHA}", SHA, f"sha256:{SHA}/.."])
def test_only_a_digest_becomes_a_file_name(text):
    with pytest.raises(manifest.ManifestError):
        manifest.check_digest(text)
    assert manifest.check_digest(f"sha256:{SHA}") == SHA


def test_scan_lists_regular_files_with_their_hashes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(b"abc")
    (tmp_path / "model.onnx").write_bytes(b"")
    assert manifest.scan(tmp_path) == [
        File(path="model.onnx", size=0, sha256=hashlib.sha256(b"").hexdigest()),
        File(path="sub/weights", size=3, sha256=SHA),
    ]


def _symlink(directory):
    (directory / "x").symlink_to("/etc/hostname")


def _linked_directory(directory):
    (directory / "x").symlink_to("/etc", target_is_directory=True)


def _hard_link(directory):
    outside = directory.parent / "outside"
    outside.write_bytes(b"secret")
    os.link(outside, directory / "x")


def _pipe(directory):
    os.mkfifo(directory / "x")


def _newline(directory):
    (directory / "a\nb").write_bytes(b"")


def _deep(directory):
    deep = directory.joinpath(*["d"] * (manifest.MAX_DEPTH + 1))
    deep.mkdir(parents=True)


@pytest.mark.parametrize("plant", [_symlink, _linked_directory, _hard_link, _pipe, _newline, _deep])
def test_scan_refuses_what_is_not_a_plain_file(tmp_path, plant):
    directory = tmp_path / "version"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"abc")
    plant(directory)
    with pytest.raises(manifest.ManifestError):
        manifest.scan(directory)


def test_scan_is_bounded_in_files_and_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"12345")
    assert len(manifest.scan(tmp_path, max_files=2, max_bytes=10)) == 2
    with pytest.raises(manifest.ManifestError, match="more than 1 files"):
        manifest.scan(tmp_path, max_files=1)
    with pytest.raises(manifest.ManifestError, match="over 9 bytes"):
        manifest.scan(tmp_path, max_bytes=9)

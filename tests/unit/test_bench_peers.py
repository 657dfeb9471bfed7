"""Which peers are asked, and what happens to one that cannot be had."""

import numpy as np
import pytest
from hedgerow_bench import mlp, reports
from hedgerow_bench.contender import Contender
from hedgerow_bench.peers import catalog, install, measure


def test_every_peer_has_its_script_and_its_pinned_requirements():
    pins = catalog.pins()
    for peer in catalog.PEERS:
        assert (catalog.SERVERS / peer.script).is_file()
        assert all("==" in requirement for requirement in pins[peer.environment])


def test_an_unknown_peer_is_answered_with_those_that_there_are():
    assert [peer.name for peer in measure.choose(["mosec"])] == ["mosec"]
    assert len(measure.choose([])) == len(catalog.PEERS)
    with pytest.raises(ValueError, match="mlserver"):
        measure.choose(["nobody"])


@pytest.mark.parametrize("speaks", ["json", "bytes"])
def test_an_answer_is_read_as_its_peer_writes_it(speaks):
    peer = catalog.Peer("p", "P", "mosec", "s.py", speaks, "/infer")
    rows = np.ones((1, mlp.WIDTH), np.float32)
    asked = catalog.contender(peer, 1, rows)
    assert isinstance(asked, Contender)
    assert asked.http1
    assert asked.url == "http://127.0.0.1:1/infer"
    body = b'{"rows": [[0.5]]}' if speaks == "json" else np.float32(0.5).tobytes()
    assert catalog.reader(peer)(body).reshape(-1).tolist() == [0.5]


async def test_what_cannot_be_installed_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "pins", lambda: {"mosec": [str(tmp_path / "no-such-package.whl")]})
    found = await measure.prepare([catalog.PEERS[0]], tmp_path)
    assert "cannot be installed" in found["mosec"]
    assert "\n" not in found["mosec"]


async def test_without_uv_nothing_can_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(install.shutil, "which", lambda *_args, **_keywords: None)
    with pytest.raises(install.NotInstalled, match="needs uv"):
        await install.install(tmp_path, ["numpy==1"])


def test_a_peer_that_is_left_out_is_a_note_of_the_report():
    report = reports.Report()
    row = measure._failed(report, catalog.PEERS[0], {"peer": "x"}, "two\nlines")
    assert row["error"] == "two\nlines"
    assert report.notes == [f"{catalog.PEERS[0].title} is left out: two lines"]

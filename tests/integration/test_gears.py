"""A real server and a model with large weights: mapped at once, packed behind, one copy for all workers."""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import zoo
from fakes_engine import request, tensors
from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server_process import HANG_SECONDS, Serve, ServerProcess

X = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.external(tmp_path_factory.mktemp("large") / "model.onnx", mebibytes=8)


def gears(running: ServerProcess) -> dict[str, float]:
    """How many workers hold the model in which gear."""
    with urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=20) as page:
        text = page.read().decode()
    found = re.findall(r'hedgerow_model_gear\{gear="(\w+)",model="large",version="1"\} (\S+)', text)
    return {gear: float(count) for gear, count in found}


def gears_when(running: ServerProcess, wanted: dict[str, float]) -> None:
    until = time.monotonic() + HANG_SECONDS
    while (found := gears(running)) != wanted:
        assert time.monotonic() < until, found
        time.sleep(0.05)


async def test_it_is_packed_behind_and_answers_as_before(server: Serve, large: Path):
    packed = server({"large": large})
    mapped = server({"large": large}, engine__prepack="never")
    gears_when(packed, {"packed": 1.0})
    assert gears(mapped) == {"mapped": 1.0}
    answers = []
    for running in (packed, mapped):
        async with running.channel() as channel:
            reply = await GRPCInferenceServiceStub(channel).ModelInfer(request({"x": X}, name="large"))
            answers.append(tensors(reply)["y"])
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-5 * np.abs(answers[0]).max())
    assert "large@1 is packed" in packed.messages()
    assert "is packed" not in mapped.messages()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_pages_of_mapped_weights(server: Serve, large: Path):
    """Of two that map 8 MiB each, the kernel charges 4 MiB to each."""
    running = server({"large": large}, workers=2, engine__prepack="never")
    gears_when(running, {"mapped": 2.0})
    weights = str(large.with_name("weights.bin").resolve())
    charged = resident = 0
    for pid in _children(running.process.pid):
        is_ours = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                is_ours = line.endswith(weights)
            elif is_ours and line.startswith("Pss:"):
                charged += int(line.split()[1]) << 10
            elif is_ours and line.startswith("Rss:"):
                resident += int(line.split()[1]) << 10
    assert resident >= 2 * (8 << 20)
    assert charged <= 9 << 20


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]

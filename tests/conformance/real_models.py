"""Real models with real inputs: the project's own and those that ship inside other packages.

Of the packages only the ONNX file is used, found through their metadata: their
code is not imported and need not be importable.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

Tensors = Mapping[str, np.ndarray]

#: magika reads so many bytes of a file's beginning and of its end.
MAGIKA_WINDOW = 1024
MAGIKA_PADDING = 256
#: silero-vad hears 512 samples at 16 kHz at a time, after the last 64 of the frame before.
SILERO_RATE = 16_000
SILERO_FRAME = 512
SILERO_CONTEXT = 64


@dataclass(frozen=True, eq=False)
class RealModel:
    """A model and what to ask it.

    Attributes:
        name: To serve it by.
        path: Of the ONNX file.
        requests: Tensors by input name, batch dimension included.
        alone: More requests, whose answer in a batch with others is another one
            in onnxruntime too.
    """

    name: str
    path: Path
    requests: Sequence[Tensors]
    alone: Sequence[Tensors] = ()
    #: By the id of a request above; those live as long as this.
    _answers: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def expected(self, request: Tensors) -> dict[str, np.ndarray]:
        """What onnxruntime answers in this process."""
        known = self._answers.get(id(request))
        if known is None:
            session = in_process(self.path)
            names = [output.name for output in session.get_outputs()]
            known = dict(zip(names, session.run(names, dict(request)), strict=True))
            self._answers[id(request)] = known
        return known


@cache
def in_process(path: Path) -> ort.InferenceSession:
    """A session of the file; one thread, since the order of additions is part of a float's last bit."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def shipped(distribution: str, ending: str) -> Path:
    """The one file of an installed distribution whose path ends so."""
    (found,) = [file for file in files(distribution) or () if str(file).endswith(ending)]
    return Path(str(found.locate()))


def declare_answer(model: RealModel, path: Path, *, keep_batch: bool) -> Path:
    """Writes a copy of the model's file that says which sizes the answer to its first request has.

    Nodes and weights are the same. perf_analyzer compares an output only if its
    sizes are declared.

    Args:
        model: to copy.
        path: of the copy.
        keep_batch: leave the first dimension open.
    """
    copy = onnx.load(model.path)
    answer = model.expected(model.requests[0])
    for output in copy.graph.output:
        dims = output.type.tensor_type.shape.dim
        for dim, size in list(zip(dims, answer[output.name].shape, strict=True))[keep_batch:]:
            dim.dim_value = size
    onnx.save(copy, path)
    return path


def arrival_delay(directory: Path, version: int) -> RealModel:
    """The demo's model as `python -m hedgerow_pipeline` left it in `directory`; held-out flights as input.

    Without the serving.yaml beside it: the tensor is sent, not the ids it stands for.
    """
    rows = np.load(directory / "sample.npz")[f"features:{version}"]
    requests = [{"features": rows[first : first + 1]} for first in range(40)]
    requests += [{"features": rows[:size]} for size in (2, 7, 64, 128)]
    path = directory / f"arrival_delay_v{version}.onnx"
    shutil.copy(directory / f"v{version}" / "model.onnx", path)
    return RealModel(f"arrival_delay_v{version}", path, requests)


def magika() -> RealModel:
    """What kind of file is this? INT32 [batch, 2048] -> FP32 [batch, 214]; this checkout's files as input."""
    path = shipped("magika", "standard_v3_3/model.onnx")
    texts = [
        Path(__file__).read_bytes(),
        (Path(__file__).parents[2] / "pyproject.toml").read_bytes(),
        b'{"name": "hedge", "plants": ["hawthorn", "blackthorn", "hazel"]}\n' * 40,
        path.read_bytes(),
        np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes(),
    ]
    windows = [{"bytes": magika_window(text)[np.newaxis]} for text in texts]
    together = {"bytes": np.concatenate([window["bytes"] for window in windows])}
    # Next to nothing but padding: normalising it leaves little but rounding, which
    # differs with the number of rows, and the probability with it (by 0.03).
    short = {"bytes": magika_window(b"short")[np.newaxis]}
    return RealModel("magika", path, [*windows, together], [short])


def magika_window(content: bytes) -> np.ndarray:
    """A file's first and last bytes as magika takes them, INT32 [2048]."""
    window = np.full(2 * MAGIKA_WINDOW, MAGIKA_PADDING, np.int32)
    begin = np.frombuffer(content.lstrip()[:MAGIKA_WINDOW], np.uint8)
    end = np.frombuffer(content.rstrip()[-MAGIKA_WINDOW:], np.uint8)
    window[: len(begin)] = begin
    window[len(window) - len(end) :] = end
    return window


def magika_labels() -> list[str]:
    """What magika's outputs stand for, in order."""
    config = json.loads(shipped("magika", "standard_v3_3/config.min.json").read_text())
    return list(config["target_labels_space"])


def rapidocr_detection() -> RealModel:
    """Where is text? FP32 [batch, 3, height, width] -> FP32 [batch, 1, height, width]; pages as input."""
    path = shipped("rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx")
    sizes = [(1, 32, 32), (1, 64, 160), (1, 160, 96), (2, 96, 96), (1, 224, 320)]
    requests = [{"x": page(*size, seed=seed)} for seed, size in enumerate(sizes)]
    return RealModel("rapidocr_det", path, requests)


def page(count: int, height: int, width: int, *, seed: int) -> np.ndarray:
    """Images like a page: dark strokes in lines on light paper, grain over it, FP32 from -1 to 1."""
    random = np.random.default_rng(seed)
    images = np.full((count, 3, height, width), 0.9, np.float32)
    for image in images:
        for top in range(4, height - 8, 14):
            for left in range(4, width - 6, 7):
                if random.random() < 0.8:
                    image[:, top : top + random.integers(5, 9), left : left + random.integers(2, 5)] = -0.8
    return np.clip(images + random.normal(0, 0.05, images.shape), -1, 1).astype(np.float32)


def silero_vad() -> RealModel:
    """Is someone speaking? Audio, state and a scalar rate in; probability and state out. Frames as input."""
    path = shipped("silero-vad", "data/silero_vad.onnx")
    session = in_process(path)
    requests = []
    state = np.zeros((2, 1, 128), np.float32)
    for frame in silero_frames(12):
        request = silero_request(frame, state)
        requests.append(request)
        _, state = session.run(["output", "stateN"], request)
    requests.append(silero_request(np.concatenate(silero_frames(3)), np.zeros((2, 3, 128), np.float32)))
    return RealModel("silero_vad", path, requests)


def silero_request(frames: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
    """One step: frames FP32 [streams, 576] and the state FP32 [2, streams, 128] of the step before."""
    return {"input": frames, "state": state, "sr": np.array(SILERO_RATE, np.int64)}


def silero_frames(count: int) -> list[np.ndarray]:
    """Something like a voice, on and off over noise: `count` frames FP32 [1, 576] that follow each other."""
    time = np.arange(count * SILERO_FRAME + SILERO_CONTEXT) / SILERO_RATE
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 3 * time)) / SILERO_RATE
    voice = sum(np.sin(overtone * pitch) / overtone for overtone in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)
    noise = np.random.default_rng(3).normal(0, 0.01, len(time))
    audio = (0.2 * voice * syllables + noise).astype(np.float32)
    return [
        audio[first : first + SILERO_CONTEXT + SILERO_FRAME][np.newaxis]
        for first in range(0, count * SILERO_FRAME, SILERO_FRAME)
    ]

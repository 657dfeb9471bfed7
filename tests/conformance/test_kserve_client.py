"""kserve's own InferenceGRPCClient gets the same numbers; it runs in a process of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import every_datatype
import numpy as np
from every_datatype import assert_same


def ask(address: str, cases: dict[str, np.ndarray], directory: Path) -> dict[str, np.ndarray]:
    """Sends arrays named MODEL/raw|typed/CASE/INPUT; returns arrays MODEL/raw|typed/CASE/OUTPUT."""
    np.savez(directory / "cases.npz", **cases)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kserve_caller.py"), address, directory / "cases.npz"],
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(np.load(io.BytesIO(done.stdout), allow_pickle=True))


def test_kserve_gets_the_same_bits_raw_and_typed(server, models, tmp_path):
    """Its client sends numbers raw or typed, FP16 only raw; all must come to the same."""
    sent = every_datatype.random(1)
    typed = {name: values for name, values in sent.items() if name != "FP16"}
    asked = {
        "every_datatype/raw/0": (every_datatype.inputs(sent), every_datatype.outputs(sent)),
        "every_datatype_but_fp16/typed/0": (every_datatype.inputs(typed), every_datatype.outputs(typed)),
    }
    for model in models.values():
        for i, request in enumerate(model.requests[:4]):
            for form in ("raw", "typed"):
                asked[f"{model.name}/{form}/{i}"] = (request, model.expected(request))
    cases, expected = {}, {}
    for case, (inputs, outputs) in asked.items():
        cases |= {f"{case}/{name}": values for name, values in inputs.items()}
        expected |= {f"{case}/{name}": values for name, values in outputs.items()}
    answers = ask(server.grpc, cases, tmp_path)
    assert answers.keys() == expected.keys()
    for case, values in expected.items():
        assert_same(answers[case], values)

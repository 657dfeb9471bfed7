"""perf_analyzer drives the server as it drives Triton: sync, async and streaming, on both transports.

It reads metadata, configuration and statistics with Triton's C++ client, and
compares answers byte by byte where it is told them.
"""

from __future__ import annotations

import every_datatype
import numpy as np
import perf_analyzer
import pytest
from perf_analyzer import MODES, Report

#: Models whose every output has a declared size: perf_analyzer can compare those.
COMPARED = {
    "arrival_delay_v1": "arrival_delay_v1",
    "arrival_delay_v2": "arrival_delay_v2",
    "magika": "magika",
    "rapidocr_det_fixed": "rapidocr_det",
    "silero_vad_fixed": "silero_vad",
}
#: Windows of 300 ms, twenty at most; how much they differ does not matter here, but each must hold an answer.
QUICK = ("-p", "300", "-s", "999", "-r", "20")


@pytest.fixture(scope="session", autouse=True)
def _installed():
    if reason := perf_analyzer.missing():
        pytest.skip(reason)


@pytest.fixture(params=MODES)
def mode(request) -> str:
    return request.param


def data_for(models, name, path, *, spoiled=False, compared=True):
    """One-row requests of a real model, all of one size, as an --input-data file."""
    model = models[COMPARED.get(name, name)]
    first = model.requests[0]
    alike = [
        request
        for request in model.requests
        if all(request[tensor].shape == values.shape for tensor, values in first.items())
    ]
    answers = [{tensor: values.copy() for tensor, values in model.expected(one).items()} for one in alike]
    if spoiled:
        # The last bit of the last number.
        for answer in answers:
            values = list(answer.values())[-1]
            values.view(np.uint8).reshape(-1)[-values.itemsize] ^= 1
    has_batch = not name.startswith("silero_vad")
    return perf_analyzer.write_data(path, alike, answers if compared else None, has_batch=has_batch)


def assert_clean(report: Report) -> None:
    assert report.code == 0, report.output
    assert "rror" not in report.output, report.output
    assert report.requests > 0
    assert report.server_requests > 0


@pytest.mark.parametrize("name", COMPARED)
def test_every_answer_is_what_onnxruntime_says_byte_by_byte(server, mode, models, name, tmp_path):
    """One request at a time, so each runs alone."""
    data = data_for(models, name, tmp_path / "data.json")
    report = perf_analyzer.ask(server.grpc, name, mode, "--request-count", "40", "--input-data", str(data))
    assert_clean(report)
    assert report.requests >= 40


def test_perf_analyzer_notices_a_single_wrong_bit(server, mode, models, tmp_path):
    """The test above can fail."""
    data = data_for(models, "arrival_delay_v1", tmp_path / "data.json", spoiled=True)
    report = perf_analyzer.ask(
        server.grpc, "arrival_delay_v1", mode, "--request-count", "40", "--input-data", str(data)
    )
    assert report.code != 0
    assert "Output doesn't match expected output" in report.output


def test_every_datatype_comes_back_to_its_own_caller_out_of_a_batch(server, mode, tmp_path):
    """16 at once share runs; identity gives each its own bytes back, or the tool says so."""
    sent = [every_datatype.random(seed) for seed in range(32)]
    requests = [every_datatype.inputs(tensors) for tensors in sent]
    answers = [every_datatype.outputs(tensors) for tensors in sent]
    data = perf_analyzer.write_data(tmp_path / "data.json", requests, answers, has_batch=True)
    report = perf_analyzer.ask(
        server.grpc, "every_datatype", mode, "--concurrency-range", "16", *QUICK, "--input-data", str(data)
    )
    assert_clean(report)
    assert report.server_runs < report.server_requests


@pytest.mark.parametrize("name", ["arrival_delay_v1", "magika", "silero_vad"])
def test_eight_at_once_are_answered_without_an_error(server, mode, models, name, tmp_path):
    data = data_for(models, name, tmp_path / "data.json", compared=False)
    report = perf_analyzer.ask(
        server.grpc, name, mode, "--concurrency-range", "8", *QUICK, "--input-data", str(data)
    )
    assert_clean(report)


def test_varying_sizes_are_given_on_the_command_line(server, mode):
    """The tool makes up images of a size that the model's metadata leaves open."""
    report = perf_analyzer.ask(
        server.grpc, "rapidocr_det", mode, "--concurrency-range", "4", "--shape", "x:3,64,96", *QUICK
    )
    assert_clean(report)


def test_rows_are_counted_where_a_request_has_several(server, mode):
    """-b 8: eight rows to a request, in the tool's words eight inferences."""
    report = perf_analyzer.ask(
        server.grpc, "arrival_delay_v1", mode, "-b", "8", "--concurrency-range", "4", *QUICK
    )
    assert_clean(report)
    assert report.server_rows == 8 * report.server_requests

"""The command line without a server: help, addresses, input, output, exit codes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hedgerow.cli import main, output
from hedgerow.cli.app import build
from hedgerow.cli.endpoints import backups, resolve
from hedgerow.cli.infer import _fill, _parse
from hedgerow.cli.serving import _serving
from hedgerow.cli.status import view
from hedgerow.cli.unreachable import explained
from hedgerow.descriptions import ModelMetadata, TensorMetadata
from hedgerow.errors import HedgerowError, Unavailable
from hedgerow.prediction import _from_environment
from hedgerow_protos import hedgerow_control_pb2 as pb

COMMANDS = ["up", "infer", "models", "status", "publish", "rollback", "bench", "features"]
VERBS = [*COMMANDS[:-1], "features apply", "features load", "features get"]


@pytest.fixture(autouse=True)
def _no_addresses_from_outside(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (
        "HEDGEROW_SERVER",
        "HEDGEROW_BACKUPS",
        "HEDGEROW_CONTROL",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "HEDGEROW_FEATURES__STORE",
        "HEDGEROW_FEATURES__CACHE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", ["", "features", *VERBS])
def test_help_begins_with_examples_of_that_command(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == "Examples:"
    assert second.startswith(f"  hedgerow {command}")
    assert any("Exit codes:" in line for line in rest)


def test_every_command_of_the_help_is_tested_here():
    assert sorted(name for name in build() if not name.startswith("-")) == sorted(COMMANDS)


@pytest.mark.parametrize("command", VERBS)
def test_every_command_can_speak_json(command, capsys):
    main([*command.split(), "--help"])
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "code", "words"),
    [
        (["nope"], 2, "Unknown command"),
        (["infer"], 2, "MODEL"),
        (["infer", "m"], 2, "--zeros"),
        (["infer", "m", "--input", "no equals sign"], 2, "expected name=JSON"),
        (["infer", "m", "--input", "x=[1"], 2, "--input x"),
        (["infer", "m", "--input", "x=@/nonexistent.npy"], 2, "/nonexistent.npy"),
        (["status", "--interval", "0"], 2, "--interval"),
        (["publish", "/nonexistent.onnx", "m"], 2, "/nonexistent.onnx"),
        (["publish", __file__, "m", "--tag", "novalue"], 2, "key=value"),
        (["publish", __file__, "a b"], 2, "cannot name a model"),
        (["publish", __file__, "m", "--wait", "--alias", ""], 2, "--wait needs an alias"),
        (["publish", __file__, "m"], 2, "not a valid ONNX model"),
        (
            ["publish", __file__, "m", "--tag", "cost_per_1k=nan"],
            2,
            "tag cost_per_1k is 'nan'; expected a number",
        ),
        (["publish", __file__, "m", "--tag", "hedgerow.weight.economy=-1"], 2, "is '-1'; expected a whole"),
        (["up", "--ports", "some"], 2, "--ports"),
    ],
)
def test_an_error_is_one_line_and_a_documented_exit_code(tokens, code, words, capsys):
    assert main(tokens) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hedgerow: ")
    assert err.count("\n") == 1
    assert words in err


def test_with_json_the_error_is_an_object(capsys):
    assert main(["infer", "m", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["kind"], error["code"]) == ("InvalidRequest", "INVALID_ARGUMENT")
    assert main(["infer", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["kind"] == "Usage"


def test_addresses_come_from_flag_then_environment_then_local_stack_then_default(tmp_path, monkeypatch):
    stack = tmp_path / "endpoints.json"
    assert resolve("server", None, local_stack=stack) == "127.0.0.1:8001"
    stack.write_text(json.dumps({"server": "127.0.0.1:7", "pid": os.getpid()}))
    assert resolve("server", None, local_stack=stack) == "127.0.0.1:7"
    assert resolve("mlflow", None, local_stack=stack) == "http://127.0.0.1:5000"
    monkeypatch.setenv("HEDGEROW_SERVER", "h:8")
    assert resolve("server", None, local_stack=stack) == "h:8"
    assert resolve("server", "h:9", local_stack=stack) == "h:9"


def test_a_stack_that_is_gone_is_ignored(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stack = tmp_path / "endpoints.json"
    for text in (json.dumps({"server": "h:7", "pid": ended.pid}), '{"server": "h:7"}', "{", "[]"):
        stack.write_text(text)
        assert resolve("server", None, local_stack=stack) == "127.0.0.1:8001"


def test_inputs_are_read_from_json_and_files(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.int8))
    (tmp_path / "x.json").write_text("[[1, 2]]")
    name, array = _parse(f"x=@{tmp_path}/x.npy")
    assert (name, array.dtype, array.tolist()) == ("x", np.int8, [[1, 1], [1, 1]])
    assert _parse(f"x=@{tmp_path}/x.json") == ("x", [[1, 2]])
    assert _parse('x=["a=b"]') == ("x", ["a=b"])


def test_a_pickle_is_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(HedgerowError, match="allow_pickle"):
        _parse(f"x=@{tmp_path}/x.npy")


MODEL = ModelMetadata(
    "m",
    ("1",),
    "onnx",
    (
        TensorMetadata("x", "FP16", (-1, 2)),
        TensorMetadata("s", "BYTES", (3,)),
        TensorMetadata("b", "BF16", (1,)),
    ),
    (),
)


def test_zeros_fill_what_is_not_given():
    filled = _fill(MODEL, {"b": [1]}, zeros=True)
    assert (filled["x"].dtype, filled["x"].tolist()) == (np.float16, [[0, 0]])
    assert filled["s"].tolist() == [b"", b"", b""]
    with pytest.raises(HedgerowError, match="b BF16"):
        _fill(MODEL, {}, zeros=True)


def test_missing_and_unknown_inputs_are_named_with_what_the_model_takes():
    with pytest.raises(HedgerowError, match=r"missing: s BYTES \[3\], b BF16 \[1\]"):
        _fill(MODEL, {"x": [[1, 2]]}, zeros=False)
    with pytest.raises(HedgerowError, match=r"no input 'y'; it takes x FP16 \[-1, 2\]"):
        _fill(MODEL, {"y": 1}, zeros=True)


def test_json_output_is_json_whatever_the_model_gives(capsys):
    output.print_json(
        {
            "a": np.array([[1.5, math.nan, -math.inf]], np.float32),
            "b": np.array([b"\xff", b"ok"], dtype=object),
        }
    )
    read = json.loads(capsys.readouterr().out)
    assert read == {"a": [[1.5, "NaN", "-Infinity"]], "b": ["\\xff", "ok"]}


def test_the_status_view_shows_every_part(capsys, monkeypatch):
    answer = pb.GetStatusResponse(
        snapshot_version=9,
        registry=pb.RegistryStatus(uri="http://r", reachable=False, error="refused"),
        models=[
            pb.ModelStatus(
                name="m",
                routes=[pb.Route(variant="champion", version="2", weight=90)],
                versions=[
                    pb.ModelVersionStatus(
                        version="2", stage="serving", nodes_ready=2, succeeded=5, p99_ms=1.5
                    ),
                    pb.ModelVersionStatus(version="3", stage="failed", reason="custom op [x]"),
                ],
            )
        ],
        nodes=[pb.NodeStatus(node="n/0", region="eu", connected=False, last_nack="too big")],
    )
    monkeypatch.setenv("COLUMNS", "200")
    output.console().print(view(answer))
    shown = capsys.readouterr().out
    for part in ("snapshot 9", "unreachable: refused", "champion 90", "1.50", "n/0", "away", "too big"):
        assert part in shown
    assert "m 3: failed: custom op [x]" in shown, "text of others is not markup"


def variant(name: str, version: str, weight: int, **more: float) -> pb.VariantStatus:
    return pb.VariantStatus(variant=name, version=version, weight=weight, **more)


SPLIT = [
    variant("champion", "7", 90, served_share=0.902, cost_per_1k=1.5, predictions=9020, cost_units=13.53),
    variant("economy", "8", 10, served_share=0.098, predictions=980, cost_units=0.294, saved_units=1.176),
    variant("challenger", "9", 0, cost_per_1k=3, cost_units=3000, saved_units=-1500),
    variant("asked", "", 0, requests=5, predictions=5, cost_units=0.0075),
    variant("shadow", "10", 0),
]


def test_the_status_view_says_who_gets_which_share_and_what_that_costs(capsys, monkeypatch):
    for width in ("200", "80"):
        monkeypatch.setenv("COLUMNS", width)
        output.console().print(view(pb.GetStatusResponse(models=[pb.ModelStatus(name="m", variants=SPLIT)])))
        lines = {
            line.split()[1]: " ".join(line.split())
            for line in capsys.readouterr().out.splitlines()
            if "m " in line
        }
        assert lines["champion"] == "m champion 7 90 % 90.2 % 9020 1.5 13.5300 -"
        assert lines["economy"] == "m economy 8 10 % 9.8 % 980 - 0.2940 1.1760"
        assert lines["challenger"] == "m challenger 9 0 % - 0 3 3,000 -1,500"
        assert lines["asked"] == "m asked - - - 5 - 0.0075 -"
        assert lines["shadow"] == "m shadow 10 0 % - 0 - - -"


def test_the_status_view_sums_a_models_costs(capsys):
    output.console().print(view(pb.GetStatusResponse(models=[pb.ModelStatus(name="m", variants=SPLIT)])))
    (line,) = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("all")
    ]
    assert line == ["all", "3,014", "-1,499"]


@pytest.mark.parametrize(
    "variants",
    [[], [variant("champion", "1", 100)], [variant("champion", "1", 100), variant("shadow", "2", 0)]],
)
def test_a_model_that_splits_nobody_and_has_no_price_needs_no_such_table(variants, capsys):
    output.console().print(view(pb.GetStatusResponse(models=[pb.ModelStatus(name="m", variants=variants)])))
    assert "weight" not in capsys.readouterr().out


def test_a_number_that_may_be_absent_is_null_in_json(capsys):
    output.print_json(pb.VariantStatus(variant="economy", cost_per_1k=0.0))
    read = json.loads(capsys.readouterr().out)
    assert (read["served_share"], read["cost_per_1k"], read["cost_units"]) == (None, 0.0, 0.0)


def test_the_status_view_keeps_words_whole_in_a_narrow_terminal(capsys, monkeypatch):
    versions = [pb.ModelVersionStatus(version="12", stage="retained", succeeded=10**6, p99_ms=123.4)]
    routes = [pb.Route(variant="champion", version="12", weight=100)]
    model = pb.ModelStatus(name="arrival-delay", routes=routes, versions=versions)
    monkeypatch.setenv("COLUMNS", "80")
    output.console().print(view(pb.GetStatusResponse(models=[model])))
    shown = capsys.readouterr().out
    for part in ("retained", "champion 100", "123.40"):
        assert part in shown


@pytest.mark.parametrize(
    ("address", "words"), [("http://h:1", "write h:1, without"), ("h", "the port is missing; write h:8001")]
)
def test_an_address_that_grpc_would_misread_is_refused_with_the_right_one(address, words):
    with pytest.raises(HedgerowError, match=words):
        resolve("server", address)


def test_backups_come_from_the_flag_or_from_where_the_server_does(monkeypatch):
    """Whoever names a server with a flag does not mean the environment's backup regions."""
    assert backups(None, None) == ()
    monkeypatch.setenv("HEDGEROW_BACKUPS", "b:1, c:2,")
    assert backups(None, None) == ("b:1", "c:2")
    assert backups("s:1", None) == ()
    assert backups("s:1", ["d:3"]) == ("d:3",)
    assert backups(None, ["d:3"]) == ("d:3",)
    for address in ("http://b:1", "b"):
        with pytest.raises(HedgerowError):
            backups(None, [address])
        monkeypatch.setenv("HEDGEROW_BACKUPS", address)
        with pytest.raises(HedgerowError, match="HEDGEROW_BACKUPS"):
            backups(None, None)


def test_predict_takes_server_and_backups_from_the_environment(monkeypatch):
    assert _from_environment() == ("127.0.0.1:8001",)
    monkeypatch.setenv("HEDGEROW_SERVER", "a:1")
    monkeypatch.setenv("HEDGEROW_BACKUPS", "b:1,c:2")
    assert _from_environment() == ("a:1", "b:1", "c:2")


ALL = "failed to connect to all addresses"


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            f"h:1: {ALL}; last error: UNKNOWN: ipv4:1: Failed to connect to remote host: Connection refused",
            "h:1: Connection refused (is it running? `hedgerow-server`",
        ),
        (
            "control plane h:1: errors resolving h:1: [field:hostname lookup error:Domain name not found]",
            "control plane h:1: no such host (is it running? `hedgerow up`",
        ),
        (
            f"h:1: {ALL}; last error: INTERNAL: ipv4:1: Failed (Trying to connect an http1.x server)",
            "h:1: HTTP/1 answers there",
        ),
        ("h:1: shutting down", "h:1: shutting down (is it running?"),
    ],
)
def test_nobody_there_is_said_in_a_few_words(details, words):
    assert explained(Unavailable(details)).startswith(words)


def _status(*, variant="champion", stage="serving", acknowledged=7, connected=True):
    return pb.GetStatusResponse(
        snapshot_version=7,
        models=[
            pb.ModelStatus(
                name="m",
                routes=[pb.Route(variant=variant, version="2", weight=100)],
                versions=[pb.ModelVersionStatus(version="2", stage=stage, reason="custom operator")],
            )
        ],
        nodes=[
            pb.NodeStatus(node="a", connected=True, snapshot_version=7),
            pb.NodeStatus(node="b", connected=connected, snapshot_version=acknowledged),
        ],
    )


@pytest.mark.parametrize(
    ("answer", "servers"),
    [
        (_status(), 2),
        (_status(acknowledged=6), 0),
        (_status(acknowledged=6, connected=False), 1),
        (_status(variant="challenger"), 0),
        (pb.GetStatusResponse(snapshot_version=7), 0),
    ],
)
def test_a_published_version_is_served_when_every_connected_server_has_its_route(answer, servers):
    assert _serving(answer, "m", "2", "champion") == servers


def test_waiting_for_a_refused_version_ends_with_the_reason():
    with pytest.raises(HedgerowError, match="m version 2 is not served: custom operator"):
        _serving(_status(stage="failed"), "m", "2", "champion")

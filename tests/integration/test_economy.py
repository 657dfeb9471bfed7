"""A cheaper variant for a tenth of the callers, from tags in a real MLflow to what it saved."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc
import hedgerow
import numpy as np
import pytest
import pytest_asyncio
from control_plane import ControlPlane, Mlflow, shared_mlflow, tiny_model
from hedgerow.cli import main
from hedgerow_protos import hedgerow_control_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from server_process import Serve, ServerProcess

# MLflow alone takes a minute to start on a busy machine.
pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

HANG = 60.0
Seen = TypeVar("Seen")
CALLERS = 1000
#: Rows of a request; a prediction is a row.
ROWS = 2
TIMES = 2


@pytest.fixture(scope="module")
def mlflow() -> Mlflow:
    return shared_mlflow()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def control(mlflow: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with ControlPlane(mlflow.uri, tmp_path_factory.mktemp("control")) as running:
        yield running


@pytest.fixture(scope="module")
def running(server: Serve, control: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    state = tmp_path_factory.mktemp("state")
    return server({}, server__control=control.grpc, server__state_dir=state, server__workers=2)


@pytest_asyncio.fixture(loop_scope="module")
async def model(mlflow: Mlflow, control: ControlPlane, running: ServerProcess) -> AsyncIterator[str]:
    """Version 1 multiplies by 1 and is champion for 2 units; 2 by 2 and is economy for 0.5."""
    name = mlflow.model("delay")
    mlflow.version(name, {"model.onnx": tiny_model(1)}, {"cost_per_1k": "2"})
    mlflow.version(name, {"model.onnx": tiny_model(2)}, {"cost_per_1k": "0.5"})
    mlflow.champion(name, "1")
    mlflow.client.set_registered_model_alias(name, "economy", "2")
    await until_weights(running, name, champion=90, economy=10)
    yield name
    mlflow.retire(name)


async def until(look: Callable[[], Awaitable[Seen]], is_so: Callable[[Seen], bool]) -> Seen:
    """Waits until something is seen; what is seen instead is shown."""
    seen = await look()
    try:
        async with asyncio.timeout(HANG):
            while not is_so(seen):
                await asyncio.sleep(0.1)
                seen = await look()
    except TimeoutError:
        pytest.fail(f"still {seen}")
    return seen


async def until_weights(server: ServerProcess, model: str, **weights: float) -> None:
    async def look() -> dict[str, float]:
        return on_page(server, "route_weight", model=model)

    await until(look, lambda seen: seen == weights)


def samples(server: ServerProcess, family: str) -> list[Sample]:
    """What the server's metrics page has of one family."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    families = {found.name: found.samples for found in text_string_to_metric_families(text)}
    return families.get(f"hedgerow_{family}", [])


def on_page(server: ServerProcess, family: str, **labels: str) -> dict[str, float]:
    """Variant (or nothing) -> value, summed over the other labels."""
    result: dict[str, float] = {}
    for sample in samples(server, family):
        if labels.items() <= sample.labels.items():
            variant = sample.labels.get("variant", "")
            result[variant] = result.get(variant, 0.0) + sample.value
    return result


async def ask_all(server: ServerProcess, model: str) -> list[dict[str, str]]:
    """What each caller was told of the variant, several times over; also checks that it was the truth."""
    x = np.ones((ROWS, 4), np.float32)
    told: list[dict[str, str]] = []
    async with hedgerow.AsyncClient(server.grpc) as client:

        async def ask(caller: str) -> tuple[str, str]:
            reply = await client.infer(model, {"x": x}, route_key=caller)
            assert reply["y"].tolist() == [[float(reply.model_version)] * 4] * ROWS
            assert (reply.variant or "champion") == {"1": "champion", "2": "economy", "3": "challenger"}[
                reply.model_version
            ]
            return caller, reply.variant or "champion"

        for _ in range(TIMES):
            round_of_answers: dict[str, str] = {}
            for first in range(0, CALLERS, 100):
                callers = [f"caller {i}" for i in range(first, first + 100)]
                round_of_answers.update(await asyncio.gather(*map(ask, callers)))
            told.append(round_of_answers)
    return told


def shares(told: list[dict[str, str]]) -> Counter[str]:
    """Callers by variant; each has the same one at every request."""
    assert all(again == told[0] for again in told)
    return Counter(told[0].values())


def is_about(count: int, percent: int) -> bool:
    """Five standard deviations of a fair draw; the draw is a hash, so a name decides once for all."""
    share = percent / 100
    return abs(count - CALLERS * share) <= 5 * (CALLERS * share * (1 - share)) ** 0.5


async def status(control: ControlPlane, model: str) -> dict[str, pb.VariantStatus]:
    answer = await control.operator.GetStatus(pb.GetStatusRequest(), timeout=10)
    return {one.variant: one for m in answer.models if m.name == model for one in m.variants}


async def test_a_tenth_of_the_callers_gets_the_economy_variant_and_what_that_saves_is_told(
    model: str, running: ServerProcess, control: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    told = await ask_all(running, model)
    callers = shares(told)
    assert is_about(callers["economy"], 10)
    requests = {variant: TIMES * count for variant, count in callers.items()}
    predictions = {variant: ROWS * count for variant, count in requests.items()}

    # The metrics page, summed over both workers.
    assert on_page(running, "variant_requests", model=model) == {**requests, "asked": 0.0}
    cost = on_page(running, "cost_units", model=model)
    assert cost["champion"] == pytest.approx(predictions["champion"] * 2 / 1000)
    assert cost["economy"] == pytest.approx(predictions["economy"] * 0.5 / 1000)
    saved = predictions["economy"] * 1.5 / 1000
    assert on_page(running, "cost_saved_units", model=model)[""] == pytest.approx(saved)
    assert on_page(running, "cost_extra_units", model=model)[""] == 0.0

    # What the control plane was told of it.
    seen = await until(
        lambda: status(control, model),
        lambda seen: sum(one.requests for one in seen.values()) >= TIMES * CALLERS,
    )
    economy = seen["economy"]
    assert (economy.version, economy.weight, economy.cost_per_1k) == ("2", 10, 0.5)
    assert (economy.requests, economy.predictions) == (requests["economy"], predictions["economy"])
    assert economy.served_share == pytest.approx(callers["economy"] / CALLERS)
    assert seen["champion"].served_share == pytest.approx(1 - economy.served_share)
    assert economy.saved_units == pytest.approx(saved)

    # And what the command shows of that.
    assert await asyncio.to_thread(main, ["status", "--control", control.grpc]) == 0
    (line,) = re.findall(rf"^{model} +economy .*$", capsys.readouterr().out, re.MULTILINE)
    assert line.split()[1:] == [
        *("economy", "2", "10", "%", f"{economy.served_share:.1%}"[:-1], "%"),
        *(str(predictions["economy"]), "0.5", f"{economy.cost_units:.4f}", f"{saved:.4f}"),
    ]
    assert await asyncio.to_thread(main, ["status", "--json", "--control", control.grpc]) == 0
    (found,) = [m for m in json.loads(capsys.readouterr().out)["models"] if m["name"] == model]
    assert found["variants"][1]["saved_units"] == pytest.approx(saved)


async def test_weights_from_the_registry_move_callers_from_the_champion_only(
    mlflow: Mlflow, model: str, running: ServerProcess, control: ControlPlane
) -> None:
    tenth = (await ask_all(running, model))[0]
    mlflow.client.set_registered_model_tag(model, "hedgerow.weight.economy", "40")
    await until_weights(running, model, champion=60, economy=40)
    before = await status(control, model)
    told = await ask_all(running, model)
    assert is_about(shares(told)["economy"], 40)
    assert all(told[0][caller] == "economy" for caller, had in tenth.items() if had == "economy")

    # The share is the one under the new weights, not that of all time.
    all_of_them = before["economy"].requests + TIMES * shares(told)["economy"]
    seen = await until(lambda: status(control, model), lambda seen: seen["economy"].requests >= all_of_them)
    assert seen["economy"].served_share == pytest.approx(shares(told)["economy"] / CALLERS)

    # A challenger beside it: the economy variant's callers keep it.
    mlflow.version(model, {"model.onnx": tiny_model(3)}, {"cost_per_1k": "5"})
    mlflow.client.set_registered_model_tag(model, "hedgerow.weight.challenger", "20")
    mlflow.client.set_registered_model_alias(model, "challenger", "3")
    await until_weights(running, model, champion=40, challenger=20, economy=40)
    three = await ask_all(running, model)
    assert is_about(shares(three)["challenger"], 20)
    for caller, had in told[0].items():
        assert (had, three[0][caller]) in {
            ("champion", "champion"),
            ("champion", "challenger"),
            ("economy", "economy"),
        }
    # It is the dearer one, and that does not hide in what the other saves.
    extra = TIMES * ROWS * shares(three)["challenger"] * 3 / 1000
    assert on_page(running, "cost_extra_units", model=model)[""] == pytest.approx(extra)


async def test_bad_tags_leave_what_is_in_force_and_say_so(
    mlflow: Mlflow,
    model: str,
    running: ServerProcess,
    control: ControlPlane,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = mlflow.client
    client.set_registered_model_tag(model, "hedgerow.weight.economy", "25")
    await until_weights(running, model, champion=75, economy=25)
    client.set_registered_model_tag(model, "hedgerow.weight.economy", "NaN")
    client.set_model_version_tag(model, "2", "cost_per_1k", "-1")

    async def reasons() -> str:
        return "; ".join(version.reason for version in (await control.status(model)).values())

    told = await until(reasons, lambda told: "'NaN'" in told and "'-1'" in told)
    assert "economy stays at 25 %" in told
    assert "it stays at 0.5" in told
    await asyncio.to_thread(main, ["status", "--control", control.grpc])
    shown = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert f"{model} 1: serving: tag hedgerow.weight.economy is 'NaN'; expected a whole percentage" in shown
    assert f"{model} 2: serving: tag cost_per_1k is '-1'; expected a number" in shown
    assert f"{model}: tag hedgerow.weight.economy is 'NaN'" in control.logged()
    assert on_page(running, "route_weight", model=model) == {"champion": 75.0, "economy": 25.0}
    assert (await status(control, model))["economy"].cost_per_1k == 0.5


async def test_a_price_that_changes_counts_from_then_on(
    mlflow: Mlflow, model: str, running: ServerProcess, control: ControlPlane
) -> None:
    """The tag alone changes: no alias, no new version."""
    x = np.ones((1000, 4), np.float32)

    async def spend() -> float:
        before = on_page(running, "cost_units", model=model)["asked"]
        async with hedgerow.AsyncClient(running.grpc) as asker:
            await asker.infer(model, {"x": x}, version="2")
        return on_page(running, "cost_units", model=model)["asked"] - before

    assert await spend() == pytest.approx(0.5)
    mlflow.client.set_model_version_tag(model, "2", "cost_per_1k", "0.125")
    await until(lambda: status(control, model), lambda seen: seen["economy"].cost_per_1k == 0.125)
    published = (await control.operator.GetStatus(pb.GetStatusRequest())).snapshot_version

    async def in_force() -> float:
        return min(sample.value for sample in samples(running, "snapshot_version"))

    await until(in_force, lambda seen: seen >= published)
    assert await spend() == pytest.approx(0.125)


async def test_a_tenth_is_a_tenth_for_callers_in_any_language(running: ServerProcess, model: str) -> None:
    """The share hangs on `hedgerow-route-key` alone; a caller without one is drawn anew each time."""
    from hedgerow_protos.open_inference_pb2 import ModelInferRequest
    from hedgerow_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

    request = ModelInferRequest(model_name=model, raw_input_contents=[np.ones((1, 4), np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    variants: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(10):
            replies = await asyncio.gather(
                *(stub.ModelInfer(request, timeout=20) for _ in range(CALLERS // 10))
            )
            variants.update(reply.parameters["hedgerow_variant"].string_param for reply in replies)
    assert variants.keys() == {"", "economy"}
    assert is_about(variants["economy"], 10)

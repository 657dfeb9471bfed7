"""What a backup does and says, and whether attempts go there then: in virtual time, without a connection."""

from __future__ import annotations

import asyncio

import pytest
from hedgerow_protos.breaker import State
from hedgerow_protos.hedging import LOAD, PUSHBACK, REGION
from hedgerow_protos.open_inference_pb2 import ServerReadyResponse
from hedgerow_server.resilience.backup import AttemptFailed, Backup, Reply, Unusable
from hedgerow_server.resilience.standing import LOAD_SECONDS, MISSING_SECONDS, MOST_MODELS, Standing
from hedging_world import NEVER, Ends, Region, ask
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.looptime(start=1000)

PAYLOAD = ask().SerializeToString()


@pytest.fixture
def region() -> Region:
    return Region("west")


@pytest.fixture
async def backup(region: Region) -> Backup:
    return Backup("west:1", clock=asyncio.get_running_loop().time, channel=region)  # type: ignore[arg-type]  # the part that is used


async def attempt(backup: Backup, *, model: str = "m", version: str = "", remaining: float = 10.0) -> str:
    """Makes one; returns the error, empty if it was good."""
    try:
        await backup.infer(model, version, PAYLOAD, (), remaining, lambda reply: reply.payload)
    except AttemptFailed as error:
        return str(error)
    return ""


def obstacle(backup: Backup, model: str = "m", version: str = "", remaining: float = 10.0) -> str:
    return backup.standing.obstacle(model, version, remaining)


# --------------------------------------------------- what counts against whom

TRANSPORT = ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED", "CANCELLED"]
#: About the request alone, whoever says it.
REQUEST = ["INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION", "OUT_OF_RANGE"]


@pytest.mark.parametrize("code", TRANSPORT)
async def test_what_no_server_of_ours_has_said_opens_the_breaker(backup: Backup, region: Region, code: str):
    """Nobody listens, or something else does."""
    region.said.clear()
    region.plans = [Ends(code)]
    for _ in range(3):
        assert code in await attempt(backup)
    assert backup.standing.breaker.state is State.OPEN
    assert obstacle(backup) == "breaker"
    assert "west:1" in repr(backup.standing)


@pytest.mark.parametrize("code", [*REQUEST, "INTERNAL", "UNIMPLEMENTED"])
async def test_what_a_server_says_of_a_request_counts_against_nobody(
    backup: Backup, region: Region, code: str
):
    """A request that fails in both regions must not take the backup from all others."""
    region.plans = [Ends(code)]
    for _ in range(20):
        assert code in await attempt(backup)
    assert backup.standing.breaker.state is State.CLOSED
    assert obstacle(backup) == ""


@pytest.mark.parametrize("spoke", [True, False])
@pytest.mark.parametrize("code", REQUEST)
async def test_nor_does_it_from_another_vendors_server(backup: Backup, region: Region, code: str, spoke):
    if not spoke:
        region.said.clear()
    region.plans = [Ends(code)]
    for _ in range(20):
        await attempt(backup)
    assert obstacle(backup) == ""


async def test_a_model_or_version_that_it_does_not_have_is_not_asked_for_again_for_a_moment(
    backup: Backup, region: Region
):
    region.plans = [Ends("NOT_FOUND")]
    await attempt(backup, version="7")
    assert obstacle(backup, version="7") == "no_model"
    assert obstacle(backup) == "", "a version that some caller made up says nothing of the model"
    assert obstacle(backup, version="8") == ""
    assert obstacle(backup, "n", "7") == ""
    await asyncio.sleep(MISSING_SECONDS)
    assert obstacle(backup, version="7") == ""


async def test_a_model_in_quarantine_there_keeps_away_its_own_requests_for_a_moment(
    backup: Backup, region: Region
):
    region.plans = [Ends("UNAVAILABLE")]
    for _ in range(5):
        await attempt(backup)
    assert obstacle(backup) == "no_model"
    assert obstacle(backup, "other") == ""
    await asyncio.sleep(1.0)
    assert obstacle(backup) == ""


async def test_what_is_remembered_as_missing_is_bounded(backup: Backup, region: Region):
    region.plans = [Ends("NOT_FOUND")]
    for i in range(3 * MOST_MODELS):
        await attempt(backup, model=f"m{i}")
    assert len(backup.standing._missing) <= MOST_MODELS


async def test_a_restart_with_other_models_is_noticed(backup: Backup, region: Region):
    region.plans = [Ends("NOT_FOUND")]
    await attempt(backup)
    region.ready = ServerReadyResponse(ready=False).SerializeToString()
    await backup.probe()
    assert obstacle(backup) == "not_ready"
    region.ready = ServerReadyResponse(ready=True).SerializeToString()
    await backup.probe()
    assert obstacle(backup) == ""


async def test_callers_with_little_time_do_not_open_the_breaker(backup: Backup, region: Region):
    region.plans = [Ends("answer", 0.5)]
    for _ in range(20):
        assert "DEADLINE_EXCEEDED" in await attempt(backup, remaining=0.01)
    assert backup.standing.breaker.state is State.CLOSED


async def test_attempts_that_hang_do(backup: Backup, region: Region):
    region.plans = [Ends("answer", NEVER)]
    tasks = [asyncio.create_task(attempt(backup)) for _ in range(3)]
    await asyncio.sleep(1.1)
    assert obstacle(backup) == "breaker"
    await asyncio.gather(*tasks)


async def test_garbage_opens_the_breaker_and_a_reply_that_does_not_fit_the_model_does_not(backup: Backup):
    def judge(reply: Reply) -> bytes:
        raise Unusable("as the test says", is_garbage=is_garbage)

    for is_garbage, state in ((False, State.CLOSED), (True, State.OPEN)):
        for _ in range(5):
            with pytest.raises(AttemptFailed):
                await backup.infer("m", "", PAYLOAD, (), 10.0, judge)
        assert backup.standing.breaker.state is state
        if not is_garbage:
            assert obstacle(backup) == "no_model"
            assert obstacle(backup, "other") == ""


# ----------------------------------------------------------- pushback, load


@pytest.mark.parametrize(
    ("said", "seconds"), [("300", 0.3), ("0", 0.0), ("-1", 1.0), ("soon", 1.0), ("3600000", 60.0)]
)
async def test_pushback_keeps_attempts_away_for_as_long_as_it_says(
    backup: Backup, region: Region, said: str, seconds: float
):
    """Never is about the request that was refused: another may be tried after a moment."""
    region.said[PUSHBACK] = said
    region.plans = [Ends("RESOURCE_EXHAUSTED")]
    await attempt(backup)
    assert obstacle(backup) == ("pushback" if seconds else "")
    await asyncio.sleep(seconds + 0.001)
    assert obstacle(backup) == ""
    assert backup.standing.breaker.state is State.CLOSED, "who refuses is well"


async def test_a_refusal_for_want_of_room_without_pushback_is_taken_as_one(backup: Backup, region: Region):
    region.said.clear()
    region.plans = [Ends("RESOURCE_EXHAUSTED")]
    await attempt(backup)
    assert obstacle(backup) == "pushback"
    await asyncio.sleep(1.001)
    assert obstacle(backup) == ""


async def test_load_is_believed_for_some_seconds(backup: Backup):
    standing = backup.standing
    assert standing.has_room() is None
    for said, room in (("0.79", True), ("0.8", False), ("1.7", False)):
        standing.hear([(LOAD, f"TEXT application_utilization={said}")])
        assert standing.has_room() is room
    standing.hear([(LOAD, "nonsense"), (LOAD, b"\xff")])
    assert standing.has_room() is False, "nothing was said of it"
    await asyncio.sleep(LOAD_SECONDS)
    assert standing.has_room() is None


@given(
    trailing=st.lists(
        st.tuples(
            st.sampled_from([LOAD, PUSHBACK, REGION, "x-request-id"]),
            st.one_of(st.text(max_size=100), st.binary(max_size=100)),
        ),
        max_size=5,
    )
)
def test_whatever_stands_behind_a_reply_is_heard_without_a_defect(trailing: list[tuple[str, str | bytes]]):
    now = [1000.0]
    standing = Standing("west:1", probe_seconds=1.0, clock=lambda: now[0])
    heard = standing.hear(trailing)
    assert heard.spoke is any(key == REGION for key, _ in trailing)
    assert len(standing.region) <= 63
    standing.region.encode()  # goes into a reply
    now[0] += 61.0
    assert standing.obstacle("m", "", 1.0) == "", "nothing said lasts longer than a minute"


# -------------------------------------------------------------------- latency


async def test_its_median_is_that_of_good_attempts_and_of_longer_ones_that_were_given_up(
    backup: Backup, region: Region
):
    """A backup slower than this region would be known by its few quick answers alone."""
    region.plans = [Ends("answer", 0.01)]
    await attempt(backup)
    assert backup.standing.median("m") == pytest.approx(0.01, abs=0.001)
    region.plans = [Ends("answer", NEVER)]
    for _ in range(2):
        task = asyncio.create_task(attempt(backup))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
    assert backup.standing.median("m") == pytest.approx(0.2, abs=0.001)
    assert obstacle(backup, remaining=0.1) == "no_time"
    assert obstacle(backup, "other", remaining=0.1) == ""
    task = asyncio.create_task(attempt(backup))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert backup.standing.median("m") == pytest.approx(0.2, abs=0.001), "given up at once says nothing"


async def test_a_failed_attempt_says_nothing_of_latency(backup: Backup, region: Region):
    region.plans = [Ends("INTERNAL", 0.5)]
    await attempt(backup)
    assert backup.standing.median("m") == 0.0


async def test_a_slow_model_is_not_called_slow_for_it(backup: Backup, region: Region):
    region.plans = [Ends("answer", 0.9)]
    for _ in range(5):
        await attempt(backup)
    await backup.probe()
    region.plans = [Ends("answer", 5.0)]
    for _ in range(5):
        assert await attempt(backup) == ""
    assert backup.standing.breaker.state is State.CLOSED


async def test_models_whose_latency_is_known_are_bounded(backup: Backup):
    for i in range(3 * MOST_MODELS):
        backup.standing._observe(f"m{i}", 0.1)
    assert len(backup.standing._latencies) <= MOST_MODELS


# --------------------------------------------------------------------- probes


@pytest.mark.parametrize("answer", [b"\xff\xff no reply", b"\x12\x03abc\xff", None])
async def test_a_probe_that_is_answered_by_anything_else_opens_the_breaker_and_ends_nothing(
    backup: Backup, region: Region, caplog: pytest.LogCaptureFixture, answer: bytes | None
):
    """What probes must not end: it runs as long as the worker, and the worker with it."""
    region.ready = answer
    caplog.set_level("WARNING")
    following = asyncio.create_task(backup.follow())
    await asyncio.sleep(8)
    assert not following.done()
    assert backup.standing.breaker.state is not State.CLOSED
    region.ready = ServerReadyResponse(ready=True).SerializeToString()
    await asyncio.sleep(5)
    assert obstacle(backup) == "", "it is back without a request having tried it"
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(":1: ")[2].split()[0] for line in said] == ["not", "answers"], "once each"
    following.cancel()
    await asyncio.wait([following])


async def test_a_probe_learns_load_and_region_before_they_are_needed(backup: Backup, region: Region):
    region.said[LOAD] = "TEXT application_utilization=0.250"
    assert backup.standing.region == "west:1"
    await backup.probe()
    assert backup.standing.region == "west"
    status = backup.standing.status()
    assert status.pop("since_seconds") is not None
    assert status == {
        "state": "closed",
        "trips": 0,
        "region": "west",
        "ready": True,
        "utilization": 0.25,
    }


async def test_an_open_breaker_lets_one_attempt_try_after_its_time(backup: Backup, region: Region):
    region.said.clear()
    region.plans = [Ends("UNAVAILABLE"), Ends("UNAVAILABLE"), Ends("UNAVAILABLE"), Ends("answer", 0.1)]
    for _ in range(3):
        await attempt(backup)
    assert (await attempt(backup)).startswith("<Breaker"), "not sent"
    assert len(region.asked) == 3
    await asyncio.sleep(1.0)
    assert obstacle(backup) == ""
    trial = asyncio.create_task(attempt(backup))
    await asyncio.sleep(0.01)
    assert obstacle(backup) == "breaker", "one at a time"
    assert await trial == ""
    assert obstacle(backup) == ""


async def test_a_cancelled_attempt_gives_its_leave_back(backup: Backup, region: Region):
    """Else a breaker that is half-open would wait for it for good."""
    backup.standing.breaker.tally(5, failed=5)
    await asyncio.sleep(1.0)
    region.plans = [Ends("answer", NEVER)]
    trial = asyncio.create_task(attempt(backup))
    await asyncio.sleep(0.01)
    trial.cancel()
    await asyncio.wait([trial])
    assert region.cancelled == 1
    assert obstacle(backup) == ""


async def test_a_defect_in_judging_a_reply_gives_it_back_too(backup: Backup):
    backup.standing.breaker.tally(5, failed=5)
    await asyncio.sleep(1.0)

    def judge(reply: Reply) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await backup.infer("m", "", PAYLOAD, (), 10.0, judge)
    assert obstacle(backup) == ""

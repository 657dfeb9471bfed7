"""Everything is down but one server, and its model fails: rules answer all requests in time, and say so."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from everything_down import PARTS, figures, running, tell
from fares import CALLER, MODEL, NEW_KINDS, NOWHERE, Reply
from server_process import HANG_SECONDS


def outcomes(replies: list[Reply]) -> set[str]:
    return {reply.outcome for reply in replies}


@pytest.mark.timeout(240)
async def test_rules_answer_every_request_when_all_else_is_gone_and_the_model_when_it_can(tmp_path):
    """Each reply is judged by its numbers, its marks and its time; see `fares.Reply.problem`."""
    async with running(tmp_path) as rig:
        await tell(rig, tmp_path)
        found = figures(rig)
        assert rig.wrong() == [], found
        # Whatever dies, the model answers; as long as there is a backup, that may have been quicker.
        assert outcomes(rig.between("whole", "backup")) <= {"primary", "hedge"}, found
        assert outcomes(rig.between("backup", "failing")) == {"primary"}, found
        assert {reply.features for reply in rig.between("backup", "failing")} == {"stale", "default"}
        known = rig.between("whole", "postgres")
        assert {reply.route for reply in known if reply.features == "default"} == {NOWHERE}
        # Then only the rules, by what the process remembers, and in the end by defaults.
        failing = [reply for reply in rig.between("failing", "restarting") if reply.kind in NEW_KINDS]
        assert len(failing) > 100
        assert outcomes(failing) == {"fallback"}, found
        assert {reply.rule for reply in failing} == {"by_distance", "flat"}
        assert {reply.features for reply in failing if reply.route != NOWHERE} == {"stale", "default"}
        # Until there is a version that can.
        back = rig.between("restarting", "healed")
        assert all((reply.outcome == "fallback") == (reply.version == "1") for reply in back), found
        healed = rig.between("healed")
        assert outcomes(healed) <= {"primary", "hedge"}, found
        assert {reply.version for reply in healed} == {"2"}
        assert [*rig.marks][1 : len(PARTS) + 1] == [*PARTS]

        # The log and the metrics have every one of them.
        replied = Counter((CALLER, reply.rule) for reply in rig.replies if reply.outcome == "fallback")
        end = time.monotonic() + HANG_SECONDS
        while not (logged := rig.logged()) >= replied:
            assert time.monotonic() < end, (logged, replied)
            await asyncio.sleep(0.1)
        # Whoever waited for version 2 was answered by rules meanwhile.
        assert {caller for caller, _ in logged - replied} <= {""}
        assert await asyncio.to_thread(rig.counted, "hedgerow_fallbacks_total") == logged.total()
        assert f"{MODEL}@1 is in quarantine" in (rig.stack.root / "log" / "server.log").read_text()

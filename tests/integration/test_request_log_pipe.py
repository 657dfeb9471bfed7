"""The request log of several processes on one pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

WRITER = """
import asyncio, sys
from hedgerow_server.telemetry.request_log import LogLine, open_log

log = open_log("stdout")
for number in range(5000):
    log.record(LogLine(1.0, "t" * 32, str(number), "u", sys.argv[1], "1", "", "", "", 0, 0, 0, "OK"))
asyncio.run(log.close(timeout=60))
sys.exit(log.dropped)
"""


def test_lines_of_workers_that_share_a_pipe_stay_whole():
    """A pipe tears what is larger than 4,096 bytes when two write at once."""
    end, shared = os.pipe()
    with os.fdopen(end, "rb") as output:
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(number)], stdout=shared)
            for number in range(3)
        ]
        os.close(shared)
        lines = [json.loads(line) for line in output]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert Counter(line["model"] for line in lines) == {"0": 5000, "1": 5000, "2": 5000}

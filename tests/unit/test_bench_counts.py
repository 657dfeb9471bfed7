"""Counts that are not taken on trust: h2load's, and the server's own."""

from collections import Counter

import pytest
from hedgerow_bench import counters, h2load
from hedgerow_bench.load import LoadError

OUTPUT = """Main benchmark duration is over for thread #0. Stopping all clients.
finished in 1.50s, 1949.00 req/s, 165.35KB/s
requests: 1949 total, 1949 started, 1949 done, 1940 succeeded, 4 failed, 3 errored, 2 timeout
status codes: 1949 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 165.35KB (169319) total, 9.14KB (9360) headers (space savings 96.17%), 100.27KB (102680) data
"""


def test_h2loads_closing_lines_are_read():
    assert h2load.parse(OUTPUT) == h2load.Counts(1949.0, 1940, 9, 102_680)


def test_an_h2load_that_did_not_finish_is_an_error():
    with pytest.raises(LoadError, match="could not resolve"):
        h2load.parse("starting benchmark...\ncould not resolve host\n")


@pytest.mark.parametrize(
    ("bodies", "missed"),
    [(1000, 0), (1060, 0), (940, 0), (0, 1000), (500, 500)],
)
def test_answers_without_a_body_are_no_answers(bodies, missed):
    """GRPC errors come with HTTP 200 and nothing else; what is under way at the ends is no error."""
    counts = h2load.Counts(1000.0, 1000, 0, bodies * 51)
    assert h2load.missing(counts, reply_bytes=51, under_way=64) == missed


PAGE = """# TYPE hedgerow_requests counter
hedgerow_requests_total{code="OK",model="mlp",version="1"} 70
hedgerow_requests_total{code="OK",model="mlp",version="2"} 30
hedgerow_requests_total{code="INVALID_ARGUMENT",model="mlp",version="1"} 2
# TYPE hedgerow_log_lines_dropped counter
hedgerow_log_lines_dropped_total 5
# TYPE hedgerow_process_cpu_seconds counter
hedgerow_process_cpu_seconds_total{worker="0"} 3.5
"""


def test_the_metrics_page_is_summed_by_status():
    found = counters.parse(PAGE)
    assert found.statuses == {"OK": 100, "INVALID_ARGUMENT": 2}
    assert found.log_lines_dropped == 5
    assert found.cpu_seconds == {"0": 3.5}


@pytest.mark.parametrize(
    ("after", "answers", "expected"),
    [
        ({"OK": 150}, 100, 0),
        ({"OK": 110, "CANCELLED": 64}, 100, 0),
        ({"OK": 90}, 100, 10),
        ({"OK": 100, "INTERNAL": 7}, 100, 7),
    ],
)
def test_what_the_server_does_not_call_ok_has_failed(after, answers, expected):
    before = counters.Counters(Counter({"OK": 10}))
    grown = counters.Counters(Counter({"OK": 10}) + Counter(after))
    assert counters.unanswered(before, grown, answers) == expected

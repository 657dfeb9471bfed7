"""The page of all measurements: complete by itself, and readable."""

import json
import re
from html.parser import HTMLParser

import pytest
from hedgerow_bench import page
from hedgerow_bench.spread import ratios, spread

MACHINE = {
    "python": "3.11",
    "system": "Linux x86_64",
    "processor": "A <fast> one",
    "cpus": 2,
    "packages": {"hedgerow": "0.1.0"},
}


def report(name, rows, **facts):
    return {
        "measurement": name,
        "date": "2026-11-23T21:00:00+00:00",
        "command": f"hedgerow bench {name} --target 'a<b'",
        "took_seconds": 60.0,
        "machine": MACHINE,
        "noise": ["Noisy machine: <x> & more"],
        "rows": rows,
        **facts,
    }


def throughput_row(concurrency):
    ours, theirs = [900.0, 1000.0, 1100.0], [90.0, 100.0, 110.0]
    return {
        "concurrency": concurrency,
        "connections": 1,
        "streams": concurrency,
        "servers": {"hedgerow": {"per_second": spread(ours)}, "handwritten": {"per_second": spread(theirs)}},
        "ratios": {"handwritten": ratios(ours, theirs)},
        "failed": 0,
        "generator_was_the_limit": False,
    }


PERCENTILES = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0}
REPORTS = [
    report("throughput", [throughput_row(1), throughput_row(64)]),
    report(
        "latency",
        [
            {
                "server": "hedgerow",
                "rate": 300.0,
                "requests": 100,
                "failed": 0,
                "latency_ms": PERCENTILES,
                "curve_ms": [[0.0, 0.5], [50.0, 1.0], [90.0, 2.0]],
            }
        ],
    ),
    report(
        "peers",
        [
            {"peer": "mosec", "title": "mosec", "version": "mosec==1"} | throughput_row(64),
            {"peer": "ray", "title": "Ray Serve", "version": "ray==2", "error": "cannot be installed"},
        ],
    ),
]


class Reader(HTMLParser):
    """Collects what a browser would fetch, the ids, the text, and tags that are not closed."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect", "line")

    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.text, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[key] for key in ("src", "href", "xlink:href") if key in values]
        self.fetched += [tag] if tag in ("script", "link", "iframe") else []
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def read():
    reader = Reader()
    text = page.render(REPORTS)
    reader.feed(text)
    assert not reader.open
    assert "url(http" not in text
    return reader


def test_nothing_is_fetched(read):
    assert read.fetched
    assert all(each.startswith("#") for each in read.fetched), read.fetched


def test_ids_are_unique_and_links_lead_somewhere(read):
    """Charts bring ids of their own."""
    assert len(read.ids) == len(set(read.ids))
    assert {each[1:] for each in read.fetched} <= set(read.ids)


def test_it_says_medians_spread_machine_command_and_noise(read):
    text = " ".join(read.text)
    for words in (
        "1,000 (900-1,100)",
        "10.0",
        "A <fast> one",
        "hedgerow bench throughput --target 'a<b'",
        "Noisy machine: <x> & more",
        "2026-11-23",
        "left out",
    ):
        assert words in text


def test_it_is_made_from_the_files_of_a_directory(tmp_path):
    for each in REPORTS:
        (tmp_path / f"{each['measurement']}.json").write_text(json.dumps(each))
    path = page.write(tmp_path)
    sections = re.findall(r'<h2 id="(\w+)"', path.read_text())
    assert sections == ["throughput", "latency", "peers"]


def test_what_is_no_report_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no report"):
        page.write(tmp_path)
    (tmp_path / "latency.json").write_text('{"measurement": "latency"}')
    with pytest.raises(ValueError, match=r"latency\.json is no report"):
        page.write(tmp_path)

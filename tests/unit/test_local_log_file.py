"""Logs of the local stack are bounded and keep the last run."""

from hedgerow_local.log_file import LogFile


def test_a_log_takes_at_most_twice_its_limit_and_keeps_the_newest(tmp_path):
    path = tmp_path / "log" / "part.log"
    with LogFile(path, limit=1000) as log:
        for number in range(1000):
            log.write(b"line %04d\n" % number)
    kept = sum(file.stat().st_size for file in path.parent.iterdir())
    assert kept <= 2000
    assert path.read_bytes().endswith(b"line 0999\n")


def test_a_new_run_begins_a_new_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "part.log"
    for text in (b"first\n", b"second\n"):
        with LogFile(path) as log:
            log.write(text)
    assert path.read_bytes() == b"second\n"
    assert (tmp_path / "part.log.1").read_bytes() == b"first\n"

"""How a process ended, in words."""

from __future__ import annotations

import signal

import pytest
from hedgerow_server.exits import ending
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-40, "was killed by signal 40"),
    ],
)
def test_a_signal_has_its_name_and_a_code_its_number(code, words):
    assert ending(code) == words


@given(st.integers(-255, 255))
def test_there_are_words_for_every_end(code):
    assert ending(code).startswith("was killed by " if code < 0 else "exited with code ")

"""Tells another process when requests are due: python features_pacer.py, alone, standard library only.

Reads one line, a JSON list of moments on the monotonic clock, and at each writes
the moment at which it did so, eight bytes. A process of its own, because timers
of a busy event loop are late, and uvloop's have whole milliseconds.
"""

import json
import os
import struct
import sys
import time


def main() -> None:
    """Writes at each moment; ends after the last, or when nobody reads."""
    moment = struct.Struct("<d").pack
    for due in json.loads(sys.stdin.readline()):
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            os.write(sys.stdout.fileno(), moment(time.monotonic()))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()

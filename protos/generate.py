"""Generates hedgerow_protos from the .proto files; `make protos` runs it.

The generated code differs from protoc's in two ways: it lives in a package,
and it registers its messages in `hedgerow_protos.pool.POOL`.

With --check nothing is written: exits 1 if the checked-in code is not what the
.proto files say.
"""

import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
OUT = HERE / "hedgerow_protos"
#: With services.
WIRES = ("open_inference", "hedgerow_control")
#: Messages alone.
MESSAGES = ("cel_checked", "rpc_status")


def generate(out: Path) -> list[Path]:
    """Writes the stubs into `out`; returns what it wrote."""
    _run_protoc(out, (*WIRES, *MESSAGES), "python", "pyi")
    _run_protoc(out, WIRES, "grpc_python")
    written: list[Path] = []
    for name in (*WIRES, *MESSAGES):
        messages = out / f"{name}_pb2.py"
        text, imports = re.subn(
            r"^from google\.protobuf import descriptor_pool as _descriptor_pool$",
            "from hedgerow_protos.pool import POOL as _POOL",
            messages.read_text(),
            flags=re.MULTILINE,
        )
        text, uses = re.subn(r"_descriptor_pool\.Default\(\)", "_POOL", text)
        if (imports, uses) != (1, 1):
            sys.exit(f"{messages}: protoc's output changed: {uses} uses of the default pool, not one")
        messages.write_text(text)
        written += [messages, out / f"{name}_pb2.pyi"]
    for name in WIRES:
        services = out / f"{name}_pb2_grpc.py"
        services.write_text(
            re.sub(
                rf"^import {name}_pb2 as",
                f"from hedgerow_protos import {name}_pb2 as",
                services.read_text(),
                flags=re.MULTILINE,
            )
        )
        written.append(services)
    return written


def _run_protoc(out: Path, names: tuple[str, ...], *kinds: str) -> None:
    include = str(resources.files("grpc_tools") / "_proto")
    outs = (f"--{kind}_out={out}" for kind in kinds)
    code = protoc.main(["protoc", f"-I{HERE}", f"-I{include}", *outs, *(f"{name}.proto" for name in names)])
    if code:
        sys.exit(f"protoc failed with exit code {code}")


def main() -> None:
    """Writes the package, or with --check compares it."""
    if sys.argv[1:] != ["--check"]:
        generate(OUT)
        return
    with tempfile.TemporaryDirectory() as directory:
        stale = [
            fresh.name
            for fresh in generate(Path(directory))
            if fresh.read_bytes() != (OUT / fresh.name).read_bytes()
        ]
    if stale:
        sys.exit(f"{', '.join(stale)}: not what the .proto files say; run `make protos`")


if __name__ == "__main__":
    main()

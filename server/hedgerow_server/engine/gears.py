"""The two gears of a version: mapped at once, packed behind it.

ONNX Runtime can run weights where the kernel has mapped them: such a session
is there in milliseconds, and its pages are shared by all processes and cost no
memory of their own; but every run lays the weights out anew. Or it packs them
once into private memory (pre-packing): that takes long, and runs are faster.
A version that takes traffic answers from the first until the second is warm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .model_file import ModelFile

#: Bytes of external data from which two gears pay. Packing takes about 2 ms a MiB, so what is
#: smaller is packed before the mapped session would have answered much.
PAYS_BYTES = 4 << 20


class Gear(Enum):
    """How a version's weights are held."""

    #: In the mapped file.
    MAPPED = "mapped"
    #: In private memory, as the kernels like them best. Also what has its weights in the model's own file.
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a mapped session, as they were when it was loaded."""

    directory: Path
    path: str
    file: ModelFile

    def weights(self) -> list[Path]:
        """The files that hold the weights."""
        folder = (self.directory / self.path).parent
        return [folder / location for location in sorted(self.file.external)]


def has_two(file: ModelFile) -> bool:
    """Whether a model is worth two gears."""
    return file.external_bytes >= PAYS_BYTES

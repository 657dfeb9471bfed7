"""What `features` looks up: one view of 250 numbers, 1,000 entities, and a model that takes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hedgerow_protos.feature_row import CacheCodec, RowLayout
from hedgerow_protos.hedgerow_control_pb2 import ServingSpec
from hedgerow_protos.serving_spec import parse

from hedgerow_bench import models

FEATURES = 250
ENTITIES = 1000
#: The view, its key, and how its values are kept: fresh for longer than any run.
VIEW, KEY, TTL = "customers", "customer", "2h"
NAMES = tuple(f"f{number:03}" for number in range(FEATURES))
#: What tells when requests are due; a program by itself.
PACER = Path(__file__).with_name("features_pacer.py")
#: Keys in one MSET.
_CHUNK = 500


def serving_text() -> str:
    """The serving.yaml of a model whose only input is laid out from the view."""
    fields = "".join(f"        - {{name: {name}, datatype: FP32, default: 0}}\n" for name in NAMES)
    return (
        "features:\n"
        "  views:\n"
        f"    - name: {VIEW}\n"
        "      version: 1\n"
        f"      entity: [{{name: {KEY}, datatype: INT64}}]\n"
        "      fields:\n"
        f"{fields}"
        f"      ttl: {TTL}\n"
        f"      stale_ttl: {TTL}\n"
        "  inputs:\n"
        f"    - input: {models.INPUT}\n"
        f"      columns: [{{view: {VIEW}@1}}]\n"
    )


def serving() -> ServingSpec:
    """The same, read."""
    return parse(serving_text(), source="features_data")


def values(seed: int = 0) -> npt.NDArray[np.float32]:
    """Made-up values, FP32 [entity, feature]; the ids of the entities count from 0."""
    return np.random.default_rng(seed).normal(size=(ENTITIES, FEATURES)).astype(np.float32)


def cached(numbers: npt.NDArray[np.float32]) -> list[tuple[bytes, bytes]]:
    """Key and value of each entity, as a server writes them to the cache: confirmed this moment."""
    (view,) = serving().features.views
    layout, codec = RowLayout(view), CacheCodec(view)
    rows = layout.pack_columns(dict(zip(NAMES, numbers.T, strict=True)), len(numbers))
    now_us = time.time_ns() // 1000
    return [
        (codec.key(str(entity).encode()), codec.pack(now_us, now_us, row)) for entity, row in enumerate(rows)
    ]


async def fill(cache: str, numbers: npt.NDArray[np.float32]) -> None:
    """Writes all entities to the cache at this URL."""
    # Of the server's requirements, needed only here.
    import redis.asyncio  # noqa: PLC0415

    client: Any = redis.asyncio.Redis.from_url(cache)
    try:
        entries = cached(numbers)
        for first in range(0, len(entries), _CHUNK):
            await client.mset(dict(entries[first : first + _CHUNK]))
    finally:
        await client.aclose()


def questions(entities: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Ids to ask for: INT64 [question, entity], within a question each at most once."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(ENTITIES)[:entities] for _ in range(count)]).astype(np.int64)


def write_model(directory: Path) -> Path:
    """Writes the model with its serving.yaml beside it; it answers its row's first number."""
    path = directory / "features" / "model.onnx"
    models.write_first(path, (FEATURES,))
    path.with_name("serving.yaml").write_text(serving_text())
    return path

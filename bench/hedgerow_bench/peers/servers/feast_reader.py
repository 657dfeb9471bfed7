"""Feast's Python SDK: VALUES.npy PORT DIRECTORY; obeys orders as hedgerow_bench.features_join does.

A local registry that stays in memory, the Redis online store, all features through a
feature service (a little faster than a list of names), entity rows made beforehand.
Times: get_online_features, and the same with to_dict().
"""

import datetime as dt
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

VALUES = np.load(sys.argv[1])
ENTITIES, FEATURES = VALUES.shape
NAMES = [f"f{number:03}" for number in range(FEATURES)]
QUESTIONS = 512


def prepare(port, directory):
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            # 0: the registry is read once.
            registry={"path": str(directory / "registry.db"), "cache_ttl_seconds": 0},
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}", "skip_dedup": True},
            entity_key_serialization_version=3,
        )
    )
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    view = FeatureView(
        name="customers",
        entities=[customer],
        ttl=dt.timedelta(hours=2),
        schema=[Field(name=name, dtype=Float32) for name in NAMES],
        source=FileSource(path=str(directory / "none.parquet"), timestamp_field="event_time"),
    )
    store.apply([customer, view, FeatureService(name="all", features=[view])])
    frame = pd.DataFrame(VALUES, columns=NAMES)
    frame.insert(0, "customer", np.arange(ENTITIES, dtype=np.int64))
    store.write_to_online_store("customers", frame.assign(event_time=pd.Timestamp.now("UTC")))
    return store, store.get_feature_service("all")


def obey(store, service, order):
    random = np.random.default_rng(order["seed"])
    asked = [random.permutation(ENTITIES)[: order["entities"]].tolist() for _ in range(QUESTIONS)]
    rows = [[{"customer": entity} for entity in ids] for ids in asked]
    latency, before_dict, failed = [], [], 0
    cpu, number = time.process_time(), 0
    until = time.monotonic() + order["seconds"]
    while time.monotonic() < until:
        began = time.monotonic()
        reply = store.get_online_features(features=service, entity_rows=rows[number % QUESTIONS])
        read = time.monotonic()
        found = reply.to_dict()
        ended = time.monotonic()
        before_dict.append(read - began)
        latency.append(ended - began)
        array = np.array([found[name] for name in NAMES], np.float32).T
        failed += not np.array_equal(array, VALUES[asked[number % QUESTIONS]])
        number += 1
    cpu = (time.process_time() - cpu) / order["seconds"]
    return {"latency": latency, "before_dict": before_dict, "failed": failed, "cpu": cpu}


if __name__ == "__main__":
    directory = Path(sys.argv[3])
    directory.mkdir(parents=True, exist_ok=True)
    store, service = prepare(sys.argv[2], directory)
    obey(store, service, {"entities": 1, "seconds": 0.2, "seed": 0})
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(store, service, json.loads(line))), flush=True)

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_LOADING: _ClassVar[VersionState]
    VERSION_STATE_READY: _ClassVar[VersionState]
    VERSION_STATE_SERVING: _ClassVar[VersionState]
    VERSION_STATE_DRAINING: _ClassVar[VersionState]
    VERSION_STATE_DROPPED: _ClassVar[VersionState]
    VERSION_STATE_FAILED: _ClassVar[VersionState]

class ModelGear(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_GEAR_UNSPECIFIED: _ClassVar[ModelGear]
    MODEL_GEAR_MAPPED: _ClassVar[ModelGear]
    MODEL_GEAR_PACKED: _ClassVar[ModelGear]

class NanChoice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NAN_CHOICE_UNSPECIFIED: _ClassVar[NanChoice]
    NAN_CHOICE_ALLOW: _ClassVar[NanChoice]
    NAN_CHOICE_REJECT: _ClassVar[NanChoice]

class HedgeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEDGE_MODE_UNSPECIFIED: _ClassVar[HedgeMode]
    HEDGE_MODE_FIXED: _ClassVar[HedgeMode]
    HEDGE_MODE_ADAPTIVE: _ClassVar[HedgeMode]
    HEDGE_MODE_DISABLED: _ClassVar[HedgeMode]

class BackupVersions(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKUP_VERSIONS_UNSPECIFIED: _ClassVar[BackupVersions]
    BACKUP_VERSIONS_ANY: _ClassVar[BackupVersions]
    BACKUP_VERSIONS_SAME: _ClassVar[BackupVersions]
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_LOADING: VersionState
VERSION_STATE_READY: VersionState
VERSION_STATE_SERVING: VersionState
VERSION_STATE_DRAINING: VersionState
VERSION_STATE_DROPPED: VersionState
VERSION_STATE_FAILED: VersionState
MODEL_GEAR_UNSPECIFIED: ModelGear
MODEL_GEAR_MAPPED: ModelGear
MODEL_GEAR_PACKED: ModelGear
NAN_CHOICE_UNSPECIFIED: NanChoice
NAN_CHOICE_ALLOW: NanChoice
NAN_CHOICE_REJECT: NanChoice
HEDGE_MODE_UNSPECIFIED: HedgeMode
HEDGE_MODE_FIXED: HedgeMode
HEDGE_MODE_ADAPTIVE: HedgeMode
HEDGE_MODE_DISABLED: HedgeMode
BACKUP_VERSIONS_UNSPECIFIED: BackupVersions
BACKUP_VERSIONS_ANY: BackupVersions
BACKUP_VERSIONS_SAME: BackupVersions

class SubscribeRequest(_message.Message):
    __slots__ = ("hello", "ack", "nack", "report", "stats")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    nack: Nack
    report: VersionReport
    stats: Stats
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., report: _Optional[_Union[VersionReport, _Mapping]] = ..., stats: _Optional[_Union[Stats, _Mapping]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node", "region", "snapshot_version", "release")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    node: str
    region: str
    snapshot_version: int
    release: str
    def __init__(self, node: _Optional[str] = ..., region: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("nonce", "snapshot_version")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    snapshot_version: int
    def __init__(self, nonce: _Optional[str] = ..., snapshot_version: _Optional[int] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("nonce", "snapshot_version", "last_good_version", "reason", "model", "model_version", "transient")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_GOOD_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRANSIENT_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    snapshot_version: int
    last_good_version: int
    reason: str
    model: str
    model_version: str
    transient: bool
    def __init__(self, nonce: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., last_good_version: _Optional[int] = ..., reason: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., transient: _Optional[bool] = ...) -> None: ...

class VersionReport(_message.Message):
    __slots__ = ("model", "model_version", "state", "reason", "gear")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GEAR_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    state: VersionState
    reason: str
    gear: ModelGear
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., state: _Optional[_Union[VersionState, str]] = ..., reason: _Optional[str] = ..., gear: _Optional[_Union[ModelGear, str]] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionStats]
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionStats, _Mapping]]] = ...) -> None: ...

class VersionStats(_message.Message):
    __slots__ = ("model", "model_version", "succeeded", "failed", "latency_buckets", "variants")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    succeeded: int
    failed: int
    latency_buckets: _containers.RepeatedScalarFieldContainer[int]
    variants: _containers.RepeatedCompositeFieldContainer[VariantStats]
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., latency_buckets: _Optional[_Iterable[int]] = ..., variants: _Optional[_Iterable[_Union[VariantStats, _Mapping]]] = ...) -> None: ...

class VariantStats(_message.Message):
    __slots__ = ("variant", "requests", "predictions", "cost_units", "saved_units")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    COST_UNITS_FIELD_NUMBER: _ClassVar[int]
    SAVED_UNITS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    requests: int
    predictions: int
    cost_units: float
    saved_units: float
    def __init__(self, variant: _Optional[str] = ..., requests: _Optional[int] = ..., predictions: _Optional[int] = ..., cost_units: _Optional[float] = ..., saved_units: _Optional[float] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "nonce", "models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    version: int
    nonce: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, version: _Optional[int] = ..., nonce: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "versions", "routes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, name: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "digest", "files", "path", "serving", "tags", "source_digest")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    files: _containers.RepeatedCompositeFieldContainer[File]
    path: str
    serving: ServingSpec
    tags: _containers.ScalarMap[str, str]
    source_digest: str
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., path: _Optional[str] = ..., serving: _Optional[_Union[ServingSpec, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., source_digest: _Optional[str] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "size", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("variant", "version", "weight")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    variant: str
    version: str
    weight: int
    def __init__(self, variant: _Optional[str] = ..., version: _Optional[str] = ..., weight: _Optional[int] = ...) -> None: ...

class ServingSpec(_message.Message):
    __slots__ = ("batching", "nan", "warmup", "session", "features", "hedging", "fallback", "overload")
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    NAN_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HEDGING_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    OVERLOAD_FIELD_NUMBER: _ClassVar[int]
    batching: Batching
    nan: NanPolicy
    warmup: Warmup
    session: Session
    features: Features
    hedging: Hedging
    fallback: Fallback
    overload: Overload
    def __init__(self, batching: _Optional[_Union[Batching, _Mapping]] = ..., nan: _Optional[_Union[NanPolicy, _Mapping]] = ..., warmup: _Optional[_Union[Warmup, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ..., hedging: _Optional[_Union[Hedging, _Mapping]] = ..., fallback: _Optional[_Union[Fallback, _Mapping]] = ..., overload: _Optional[_Union[Overload, _Mapping]] = ...) -> None: ...

class Overload(_message.Message):
    __slots__ = ("economy_under_pressure",)
    ECONOMY_UNDER_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    economy_under_pressure: bool
    def __init__(self, economy_under_pressure: _Optional[bool] = ...) -> None: ...

class Batching(_message.Message):
    __slots__ = ("max_batch_size", "max_queue_delay_microseconds", "preferred_batch_size", "priority_levels", "default_priority_level")
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_DELAY_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_LEVELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PRIORITY_LEVEL_FIELD_NUMBER: _ClassVar[int]
    max_batch_size: int
    max_queue_delay_microseconds: int
    preferred_batch_size: _containers.RepeatedScalarFieldContainer[int]
    priority_levels: int
    default_priority_level: int
    def __init__(self, max_batch_size: _Optional[int] = ..., max_queue_delay_microseconds: _Optional[int] = ..., preferred_batch_size: _Optional[_Iterable[int]] = ..., priority_levels: _Optional[int] = ..., default_priority_level: _Optional[int] = ...) -> None: ...

class NanPolicy(_message.Message):
    __slots__ = ("inputs", "outputs")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: NanChoice
    outputs: NanChoice
    def __init__(self, inputs: _Optional[_Union[NanChoice, str]] = ..., outputs: _Optional[_Union[NanChoice, str]] = ...) -> None: ...

class Warmup(_message.Message):
    __slots__ = ("inputs",)
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: WarmupTensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[WarmupTensor, _Mapping]] = ...) -> None: ...
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.MessageMap[str, WarmupTensor]
    def __init__(self, inputs: _Optional[_Mapping[str, WarmupTensor]] = ...) -> None: ...

class WarmupTensor(_message.Message):
    __slots__ = ("shape", "values", "strings")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., strings: _Optional[_Iterable[str]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("intra_op_threads",)
    INTRA_OP_THREADS_FIELD_NUMBER: _ClassVar[int]
    intra_op_threads: int
    def __init__(self, intra_op_threads: _Optional[int] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("views", "inputs")
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    views: _containers.RepeatedCompositeFieldContainer[FeatureView]
    inputs: _containers.RepeatedCompositeFieldContainer[FeatureInput]
    def __init__(self, views: _Optional[_Iterable[_Union[FeatureView, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[FeatureInput, _Mapping]]] = ...) -> None: ...

class FeatureView(_message.Message):
    __slots__ = ("name", "version", "entity", "fields", "ttl", "stale_ttl", "max_age")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    STALE_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    entity: _containers.RepeatedCompositeFieldContainer[EntityKey]
    fields: _containers.RepeatedCompositeFieldContainer[FeatureField]
    ttl: float
    stale_ttl: float
    max_age: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., entity: _Optional[_Iterable[_Union[EntityKey, _Mapping]]] = ..., fields: _Optional[_Iterable[_Union[FeatureField, _Mapping]]] = ..., ttl: _Optional[float] = ..., stale_ttl: _Optional[float] = ..., max_age: _Optional[float] = ...) -> None: ...

class EntityKey(_message.Message):
    __slots__ = ("name", "datatype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ...) -> None: ...

class FeatureField(_message.Message):
    __slots__ = ("name", "datatype", "width", "default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    width: int
    default: FeatureDefault
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., width: _Optional[int] = ..., default: _Optional[_Union[FeatureDefault, _Mapping]] = ...) -> None: ...

class FeatureDefault(_message.Message):
    __slots__ = ("numbers", "integers", "strings")
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    integers: _containers.RepeatedScalarFieldContainer[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, numbers: _Optional[_Iterable[float]] = ..., integers: _Optional[_Iterable[int]] = ..., strings: _Optional[_Iterable[str]] = ...) -> None: ...

class FeatureInput(_message.Message):
    __slots__ = ("input", "columns")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    input: str
    columns: _containers.RepeatedCompositeFieldContainer[FeatureColumn]
    def __init__(self, input: _Optional[str] = ..., columns: _Optional[_Iterable[_Union[FeatureColumn, _Mapping]]] = ...) -> None: ...

class FeatureColumn(_message.Message):
    __slots__ = ("view", "fields", "entity", "request")
    class EntityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    view: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    entity: _containers.ScalarMap[str, str]
    request: RequestColumn
    def __init__(self, view: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., entity: _Optional[_Mapping[str, str]] = ..., request: _Optional[_Union[RequestColumn, _Mapping]] = ...) -> None: ...

class RequestColumn(_message.Message):
    __slots__ = ("name", "datatype", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    width: int
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., width: _Optional[int] = ...) -> None: ...

class Hedging(_message.Message):
    __slots__ = ("mode", "after_ms", "versions")
    MODE_FIELD_NUMBER: _ClassVar[int]
    AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    mode: HedgeMode
    after_ms: float
    versions: BackupVersions
    def __init__(self, mode: _Optional[_Union[HedgeMode, str]] = ..., after_ms: _Optional[float] = ..., versions: _Optional[_Union[BackupVersions, str]] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("rules",)
    RULES_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[FallbackRule]
    def __init__(self, rules: _Optional[_Iterable[_Union[FallbackRule, _Mapping]]] = ...) -> None: ...

class FallbackRule(_message.Message):
    __slots__ = ("name", "when", "outputs")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    when: str
    outputs: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., when: _Optional[str] = ..., outputs: _Optional[_Mapping[str, str]] = ...) -> None: ...

class FetchFileRequest(_message.Message):
    __slots__ = ("digest", "path")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    digest: str
    path: str
    def __init__(self, digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class FetchFileResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("snapshot_version", "registry", "models", "nodes")
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    snapshot_version: int
    registry: RegistryStatus
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    def __init__(self, snapshot_version: _Optional[int] = ..., registry: _Optional[_Union[RegistryStatus, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ...) -> None: ...

class RegistryStatus(_message.Message):
    __slots__ = ("uri", "reachable", "age_seconds", "error", "calls")
    URI_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    reachable: bool
    age_seconds: float
    error: str
    calls: int
    def __init__(self, uri: _Optional[str] = ..., reachable: _Optional[bool] = ..., age_seconds: _Optional[float] = ..., error: _Optional[str] = ..., calls: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "routes", "versions", "variants")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersionStatus]
    variants: _containers.RepeatedCompositeFieldContainer[VariantStatus]
    def __init__(self, name: _Optional[str] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., versions: _Optional[_Iterable[_Union[ModelVersionStatus, _Mapping]]] = ..., variants: _Optional[_Iterable[_Union[VariantStatus, _Mapping]]] = ...) -> None: ...

class VariantStatus(_message.Message):
    __slots__ = ("variant", "version", "weight", "served_share", "cost_per_1k", "requests", "predictions", "cost_units", "saved_units")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SERVED_SHARE_FIELD_NUMBER: _ClassVar[int]
    COST_PER_1K_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    COST_UNITS_FIELD_NUMBER: _ClassVar[int]
    SAVED_UNITS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    version: str
    weight: int
    served_share: float
    cost_per_1k: float
    requests: int
    predictions: int
    cost_units: float
    saved_units: float
    def __init__(self, variant: _Optional[str] = ..., version: _Optional[str] = ..., weight: _Optional[int] = ..., served_share: _Optional[float] = ..., cost_per_1k: _Optional[float] = ..., requests: _Optional[int] = ..., predictions: _Optional[int] = ..., cost_units: _Optional[float] = ..., saved_units: _Optional[float] = ...) -> None: ...

class ModelVersionStatus(_message.Message):
    __slots__ = ("version", "stage", "reason", "nodes_ready", "succeeded", "failed", "p50_ms", "p95_ms", "p99_ms", "nodes_answering", "nodes_packed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NODES_READY_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    NODES_ANSWERING_FIELD_NUMBER: _ClassVar[int]
    NODES_PACKED_FIELD_NUMBER: _ClassVar[int]
    version: str
    stage: str
    reason: str
    nodes_ready: int
    succeeded: int
    failed: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    nodes_answering: int
    nodes_packed: int
    def __init__(self, version: _Optional[str] = ..., stage: _Optional[str] = ..., reason: _Optional[str] = ..., nodes_ready: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p95_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., nodes_answering: _Optional[int] = ..., nodes_packed: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node", "region", "snapshot_version", "connected", "last_nack", "release")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_NACK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    node: str
    region: str
    snapshot_version: int
    connected: bool
    last_nack: str
    release: str
    def __init__(self, node: _Optional[str] = ..., region: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., connected: _Optional[bool] = ..., last_nack: _Optional[str] = ..., release: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("from_version", "to_version", "snapshot_version", "seconds", "complete", "detail")
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    from_version: str
    to_version: str
    snapshot_version: int
    seconds: float
    complete: bool
    detail: str
    def __init__(self, from_version: _Optional[str] = ..., to_version: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., seconds: _Optional[float] = ..., complete: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class RefreshRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RefreshResponse(_message.Message):
    __slots__ = ("snapshot_version",)
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    snapshot_version: int
    def __init__(self, snapshot_version: _Optional[int] = ...) -> None: ...

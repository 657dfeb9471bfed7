"""The server's settings: one inert, validated object.

Durations are in seconds and sizes in bytes, unless a name says otherwise.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from hedgerow_protos.config import ProcessSettings, Secret, Section
from hedgerow_protos.names import model_name_problem
from pydantic import AfterValidator, BeforeValidator, Field, FilePath, model_validator
from pydantic_settings import NoDecode

from hedgerow_server import ports

MAX_PORT = 65535
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _model_name(name: str) -> str:
    problem = model_name_problem(name)
    if problem:
        raise ValueError(problem)
    return name


def _model_file(path: Path) -> Path:
    """The ONNX file that `path` means: itself, with .onnx added, or the model.onnx inside it."""
    for candidate in (path, path.with_name(path.name + ".onnx"), path / "model.onnx"):
        if candidate.is_file():
            return candidate.absolute()
    if path.is_dir():
        raise ValueError(f"the directory {path} holds no model.onnx")
    raise ValueError(f"no file {path}")


def _address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdecimal() and 0 < int(port) <= 65535):
        raise ValueError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:8101")
    return address


def _addresses(value: object) -> object:
    """A list, or as the environment has it: with commas between."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


ModelName = Annotated[str, AfterValidator(_model_name)]
ModelFile = Annotated[Path, AfterValidator(_model_file)]


class Server(Section):
    """[server]: where it listens, and how it lives."""

    host: str = Field(default="127.0.0.1", min_length=1)
    grpc_port: Port = 8001
    http_port: Port = 8000
    metrics_port: Port = 8002
    transport: Literal["auto", "native", "grpcio"] = "auto"
    workers: int = Field(default=1, ge=1, le=256)
    #: Worker i also listens on this port + i, alone, so that a proxy can spread requests; 0: any free ones.
    worker_ports: Port | None = None
    #: Connections older than this, give or take a tenth, are asked to connect anew, so that they spread
    #: over the workers again; 0: never. None: 300 on grpcio; the native transport cannot.
    connection_age_seconds: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False)
    region: str = Field(default="local", min_length=1, max_length=63)
    #: Unique in the fleet.
    node: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)
    #: Model files by digest and the last good snapshot.
    state_dir: Path = Path("var/server")
    #: The control plane's host:port; empty for a server on its own.
    control: Annotated[str, AfterValidator(_address)] = ""
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=2**31 - 1)
    #: What requests in flight get to finish in after SIGTERM.
    drain_seconds: float = Field(default=10.0, ge=0, le=3600, allow_inf_nan=False)
    reflection: bool = True
    #: Bearer token for repository load and unload; without one they are refused.
    operator_token: Secret = None
    operator_token_file: Path | None = None


class Tls(Section):
    """[tls]: PEM files; with a client_ca callers must show a certificate."""

    cert: FilePath | None = None
    key: FilePath | None = None
    client_ca: FilePath | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together; one of them is missing")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key")
        return self


class Engine(Section):
    """[engine]: how models are loaded and run."""

    #: Threads that run what is too slow for the event loop.
    runners: int = Field(default=5, ge=1, le=256)
    #: Runs of one model at once, as Triton's instance count; None: as many as the worker has processors.
    instances: int | None = Field(default=None, ge=1, le=256)
    #: Rows in one run, for models whose serving spec names no number.
    max_batch_size: int = Field(default=128, ge=1, le=65_536)
    #: Models that run faster than this, in microseconds, run on the event loop; None: measured time decides.
    inline_below_us: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    #: auto: large external weights are served mapped at once and packed behind, for faster runs.
    #: never: they stay mapped, in one copy for all workers.
    prepack: Literal["auto", "never"] = "auto"
    #: A version that has not answered its warm-up sample by then is refused.
    warmup_timeout: Seconds = 30.0
    #: Limits of the child process that loads a candidate first.
    trial_memory_bytes: int = Field(default=4 * 1024**3, ge=256 * 1024**2)
    trial_cpu_seconds: int = Field(default=120, ge=1)
    trial_wall_seconds: Seconds = 120.0


class Deadline(Section):
    """[deadline]: for requests that bring none, and the longest that one may ask for."""

    default_seconds: Seconds = 10.0
    maximum_seconds: Seconds = 60.0

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.default_seconds > self.maximum_seconds:
            raise ValueError(
                f"default_seconds {self.default_seconds:g} is above maximum_seconds {self.maximum_seconds:g}"
            )
        return self


class Admission(Section):
    """[admission]: requests of one model version that each worker takes at once."""

    #: Whether the limit follows how long requests wait for a run; if not, it is max_limit.
    adaptive: bool = True
    min_limit: int = Field(default=4, ge=1, le=65_536)
    max_limit: int = Field(default=4096, ge=1, le=65_536)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min_limit > self.max_limit:
            raise ValueError(f"min_limit {self.min_limit} is above max_limit {self.max_limit}")
        return self


class Features(Section):
    """[features]: where models' features come from, and how long anybody waits for them."""

    #: PostgreSQL's DSN, such as postgresql://hedgerow@db/hedgerow; without one, the cache is all there is.
    store: Secret = None
    store_file: Path | None = None
    #: Redis or Valkey: redis://host:6379/0, rediss:// with TLS, or unix:///path/to/socket.
    cache: Secret = None
    cache_file: Path | None = None
    #: A request waits so long for its features at most, then it gets what is known.
    budget_ms: float = Field(default=50.0, gt=0, le=60_000, allow_inf_nan=False)
    #: A call to the cache, and a query of the store, are given up after so long. Without a store
    #: the cache gets all of the budget: nobody else could answer.
    cache_timeout_ms: float = Field(default=20.0, gt=0, le=60_000, allow_inf_nan=False)
    store_timeout_ms: float = Field(default=1000.0, gt=0, le=600_000, allow_inf_nan=False)
    #: Of each worker, at most; so many calls are under way at once.
    cache_connections: int = Field(default=4, ge=2, le=256)
    store_connections: int = Field(default=4, ge=1, le=256)
    #: A value that the worker holds spares the cache a question for so long; 0: never.
    local_ttl_ms: float = Field(default=250.0, ge=0, le=1000, allow_inf_nan=False)
    #: What each worker holds, which it also serves while cache and store are down.
    local_bytes: int = Field(default=64 * 1024**2, ge=0)
    #: Rows of ids in one request.
    max_entities: int = Field(default=1000, ge=1, le=100_000)


class Hedge(Section):
    """[hedge]: backup regions, and when a request is tried there as well."""

    #: host:port of each, in order of preference; without one nothing is hedged and nothing fails over.
    backups: Annotated[
        tuple[Annotated[str, AfterValidator(_address)], ...], NoDecode, BeforeValidator(_addresses)
    ] = ()
    #: A request without an answer is hedged after so long.
    after_ms: float = Field(default=30.0, gt=0, le=60_000, allow_inf_nan=False)
    #: Hedge earlier, after the percentile of live latency that the budget allows, once there is one.
    adaptive: bool = False
    #: Hedges for each hundred requests; 2 took a read's p99.9 from 1,800 to 74 ms in The Tail at Scale.
    budget_percent: float = Field(default=2.0, gt=0, le=5, allow_inf_nan=False)
    #: Hedges that may come at once beyond that, after quiet times.
    burst: int = Field(default=10, ge=1, le=1000)
    #: How often each backup is asked whether it is ready.
    probe_seconds: float = Field(default=1.0, ge=0.1, le=60, allow_inf_nan=False)
    #: The authorities that backups' certificates are signed by, PEM; without it they are called in plaintext.
    ca: FilePath | None = None

    @model_validator(mode="after")
    def _names_backups_once(self) -> Self:
        if "" in self.backups or len(set(self.backups)) < len(self.backups):
            raise ValueError(f"backups {list(self.backups)}: each is a HOST:PORT, and named once")
        return self


class Fault(Section):
    """[fault]: what happens to requests here on purpose, as with Envoy's fault filter: for drills."""

    #: So many of a hundred requests wait so long before their model gets them.
    delay_percent: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    delay_ms: float = Field(default=0.0, ge=0, le=60_000, allow_inf_nan=False)
    #: So many fail in place of being run.
    abort_percent: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if bool(self.delay_percent) != bool(self.delay_ms):
            raise ValueError("delay_percent and delay_ms go together; one of them is missing")
        return self


class Log(Section):
    """[log]: one line for each request, and the process's own messages on stderr."""

    #: `stdout`, `off` or the path of a file.
    requests: str = Field(default="stdout", min_length=1)
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(ProcessSettings):
    """Everything an operator can set, validated once; see each section."""

    server: Server = Server()
    tls: Tls = Tls()
    engine: Engine = Engine()
    deadline: Deadline = Deadline()
    admission: Admission = Admission()
    features: Features = Features()
    hedge: Hedge = Hedge()
    fault: Fault = Fault()
    log: Log = Log()
    #: Name to ONNX file, for a server without a control plane.
    models: dict[ModelName, ModelFile] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.server.transport == "native" and self.tls.cert is not None:
            raise ValueError("the native transport has no TLS; use --transport grpcio or auto")
        if self.transport == "native" and self.server.connection_age_seconds:
            raise ValueError(
                "the native transport cannot close a connection without failing its calls; "
                "drop server.connection_age_seconds, or use --transport grpcio"
            )
        if self.hedge.backups and self.hedge.after_ms >= self.deadline.default_seconds * 1000:
            raise ValueError(
                f"hedge.after_ms {self.hedge.after_ms:g} is not below deadline.default_seconds "
                f"{self.deadline.default_seconds:g}: no request without a deadline of its own would be hedged"
            )
        own = ports.join(self.server.host, self.server.grpc_port)
        if own in self.hedge.backups:
            raise ValueError(f"hedge.backups: {own} is this server itself")
        if (self.server.worker_ports or 0) + self.server.workers - 1 > MAX_PORT:
            raise ValueError(f"worker_ports + workers goes beyond port {MAX_PORT}")
        if self.server.control and self.models:
            raise ValueError(
                "--model and [models] are for a server without a control plane; drop them, or server.control"
            )
        return self

    @property
    def transport(self) -> Literal["native", "grpcio"]:
        """The transport that `auto` stands for: the fast one where it can do the job."""
        if self.server.transport != "auto":
            return self.server.transport
        return "native" if self.tls.cert is None else "grpcio"

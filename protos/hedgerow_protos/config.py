"""How every process reads its configuration.

Defaults < hedgerow.toml < HEDGEROW_SECTION__KEY < flags. One file may serve
several processes: a process reads its own sections and skips those that
belong to the others. Whatever nobody knows is an error that names the closest
right word, because a misspelt key that is silently ignored is found in
production.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

#: Read from the current directory when no file is named.
DEFAULT_FILE = Path("hedgerow.toml")

#: Every section that hedgerow.toml may have, and the command that reads it.
SECTIONS: Mapping[str, str] = {
    "server": "hedgerow-server",
    "tls": "hedgerow-server",
    "engine": "hedgerow-server",
    "deadline": "hedgerow-server",
    "features": "hedgerow-server",
    "hedge": "hedgerow-server",
    "fault": "hedgerow-server",
    "log": "hedgerow-server",
    "models": "hedgerow-server",
    "control": "hedgerow-control",
    "registry": "hedgerow-control",
    "artifacts": "hedgerow-control",
}

_PREFIX = "HEDGEROW_"
_DELIMITER = "__"

S = TypeVar("S", bound="ProcessSettings")


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line for the operator."""


def _reveal(secret: SecretStr | None, info: SerializationInfo) -> str | None:
    if secret is None:
        return None
    return secret.get_secret_value() if info.context == REVEAL else str(secret)


#: `model_dump_json(context=REVEAL)` writes secrets out, to hand them to a child process.
REVEAL = "reveal secrets"

#: A field that comes from the environment or from the file that `<field>_file` names.
Secret = Annotated[SecretStr | None, PlainSerializer(_reveal, when_used="json")]


class Section(BaseModel):
    """One table of hedgerow.toml: frozen, and it knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        read = dict(values)
        for name in _secrets(cls):
            path = read.get(f"{name}_file")
            # A secret in the environment is nearer than a file and wins.
            if path is not None and read.get(name) is None:
                try:
                    read[name] = Path(path).read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    raise ValueError(f"cannot read {name}_file: {error}") from error
                if not read[name]:
                    raise ValueError(f"{name}_file {path} is empty")
        return read


class ProcessSettings(BaseSettings):
    """Base of a process's settings: one field for each section it reads.

    Inert: building one reads neither the environment nor a file, `load` does.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=_PREFIX,
        env_nested_delimiter=_DELIMITER,
        env_nested_max_split=1,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes values from the constructor alone."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def load(model: type[S], *, file: Path | None = None, flags: Mapping[str, object] | None = None) -> S:
    """Reads the settings of one process.

    Args:
        model: The process's settings.
        file: What `--config` named; None reads hedgerow.toml here if there is one.
        flags: From the command line: `section.key` to its value, or a section
            to a mapping of its keys. None stands for a flag that was not given.

    Raises:
        ConfigError: A file is missing or malformed, a key is unknown, or a
            value does not fit.
    """
    source = file or DEFAULT_FILE
    sources = {
        str(source): _from_file(model, source, required=file is not None),
        "environment": _from_environment(model),
        "command line": _from_flags(flags or {}),
    }
    merged: dict[str, dict[str, object]] = {}
    for sections in sources.values():
        for section, values in sections.items():
            merged.setdefault(section, {}).update(values)
    try:
        return model(**merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, sources) for e in error.errors())) from None


def _from_file(model: type[ProcessSettings], path: Path, *, required: bool) -> dict[str, dict[str, object]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigError(f"no configuration file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    sections: dict[str, dict[str, object]] = {}
    for section, values in tables.items():
        if section not in model.model_fields:
            if section not in SECTIONS:
                raise ConfigError(f"{path}: {_unknown_section(model, section)}")
            continue
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} is a section; write [{section}]")
        for key in values:
            _check_key(model, section, key, where=str(path))
            if key in _secrets(_keys_model(model, section)):
                name = f"{_PREFIX}{section}{_DELIMITER}{key}".upper()
                raise ConfigError(f"{path}: {section}.{key} is a secret; set {name}, or {key}_file here")
        sections[section] = values
    return sections


def _from_environment(model: type[ProcessSettings]) -> dict[str, dict[str, object]]:
    for name in sorted(os.environ):
        # Names without the double underscore are left alone: other tools have
        # them, and Kubernetes sets HEDGEROW_PORT and the like for a service.
        upper = name.upper()
        if not upper.startswith(_PREFIX) or _DELIMITER not in upper:
            continue
        section, _, key = name[len(_PREFIX) :].lower().partition(_DELIMITER)
        if section not in model.model_fields:
            if section not in SECTIONS:
                raise ConfigError(f"{name}: {_unknown_section(model, section)}")
            continue
        _check_key(model, section, key, where=name)
    source = EnvSettingsSource(model)
    # Sections come key by key, not as one JSON text.
    source.env_vars = {name: value for name, value in source.env_vars.items() if _DELIMITER in name}
    return source()


def _from_flags(flags: Mapping[str, object]) -> dict[str, dict[str, object]]:
    sections: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        section, _, key = name.partition(".")
        if value is None:
            continue
        if key:
            sections.setdefault(section, {})[key] = value
        elif isinstance(value, Mapping):
            sections.setdefault(section, {}).update(value)
        else:
            raise TypeError(f"{name} is a section, its flag needs a mapping, not {value!r}")
    return sections


def _keys_model(model: type[ProcessSettings], section: str) -> type[BaseModel] | None:
    """The section's own model; None for a section with free keys, such as [models]."""
    annotation = model.model_fields[section].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _secrets(section: type[BaseModel] | None) -> list[str]:
    if section is None:
        return []
    fields = section.model_fields
    return [name for name in fields if f"{name}_file" in fields]


def _check_key(model: type[ProcessSettings], section: str, key: str, *, where: str) -> None:
    known = _keys_model(model, section)
    if known is not None and key not in known.model_fields:
        raise ConfigError(f"{where}: [{section}] has no key {key!r}; {_suggest(key, known.model_fields)}")


def _unknown_section(model: type[ProcessSettings], section: str) -> str:
    for owner in model.model_fields:
        keys = _keys_model(model, owner)
        if keys is not None and section in keys.model_fields:
            return f"{section!r} is a key of section [{owner}]"
    return f"no section {section!r}; {_suggest(section, SECTIONS)}"


def _suggest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def _explain(error: Any, sources: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """One pydantic error as `section.key (where it came from): what is wrong`."""
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    section, key, *_ = [*map(str, error["loc"]), "", ""]
    if not key:
        return f"[{section}] {message}" if section else message
    origin = ""
    for name, sections in sources.items():  # the last one that has the key won
        if key in sections.get(section, {}):
            origin = f" ({name})"
    shown = key if len(key) <= 64 else key[:64] + "…"
    return f"{section}.{shown}{origin}: {message}"

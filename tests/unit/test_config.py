"""Configuration: the order of sources, unknown words, secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hedgerow_protos.config import REVEAL, ConfigError, ProcessSettings, Secret, Section, load
from pydantic import Field


class Door(Section):
    """A section of its own kinds of keys."""

    port: int = Field(default=1, ge=0, le=65535)
    wide: bool = False
    key: Secret = None
    key_file: Path | None = None


class House(ProcessSettings):
    """A process that reads two sections."""

    server: Door = Door()
    models: dict[str, str] = Field(default_factory=dict)


@pytest.fixture(autouse=True)
def _empty_house(tmp_path, monkeypatch):
    """No settings but the test's own: an empty directory and no HEDGEROW_ variable."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("HEDGEROW_"):
            monkeypatch.delenv(name)


def write(text: str, path: str = "hedgerow.toml") -> Path:
    Path(path).write_text(text)
    return Path(path)


def test_defaults_hold_when_nothing_is_said():
    assert load(House).server == Door(port=1, wide=False)


def test_file_then_environment_then_flag_win(monkeypatch):
    """Each source overrides only the keys that it has."""
    write("[server]\nport = 2\nwide = true")
    assert load(House).server.port == 2
    monkeypatch.setenv("HEDGEROW_SERVER__PORT", "3")
    assert load(House).server.port == 3
    found = load(House, flags={"server.port": 4})
    assert (found.server.port, found.server.wide) == (4, True)


def test_a_flag_that_was_not_given_overrides_nothing():
    write("[server]\nport = 2")
    assert load(House, flags={"server.port": None}).server.port == 2


def test_a_named_file_is_read_in_place_of_the_one_here():
    write("[server]\nport = 2")
    other = write("[server]\nport = 5", "other.toml")
    assert load(House, file=other).server.port == 5


def test_building_settings_reads_no_environment(monkeypatch):
    """Only `load` looks outside; a settings object is inert."""
    monkeypatch.setenv("HEDGEROW_SERVER__PORT", "3")
    assert House().server.port == 1


def test_free_keys_of_all_sources_are_merged(monkeypatch):
    write("[models]\na = '1'\n'with.dot' = '2'")
    monkeypatch.setenv("HEDGEROW_MODELS__B", "3")
    assert load(House, flags={"models": {"c": "4"}}).models == {"a": "1", "with.dot": "2", "b": "3", "c": "4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "hedgerow.toml: [server] has no key 'prot'; did you mean 'port'?"),
        ("[sever]\nport = 1", "hedgerow.toml: no section 'sever'; did you mean 'server'?"),
        ("port = 1", "hedgerow.toml: 'port' is a key of section [server]"),
        ("server = 1", "hedgerow.toml: server is a section; write [server]"),
        ("[server]\nport = 'x'", "server.port (hedgerow.toml): input should be a valid integer"),
        (
            "[server]\nport = 65536",
            "server.port (hedgerow.toml): input should be less than or equal to 65535",
        ),
        ("[server", "hedgerow.toml is not TOML"),
        ("[server]\nkey = 'hush'", "server.key is a secret; set HEDGEROW_SERVER__KEY, or key_file here"),
        ("[server]\nkey_file = 'nowhere'", "cannot read key_file"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_do(text, message):
    write(text)
    with pytest.raises(ConfigError) as caught:
        load(House)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HEDGEROW_SERVER__PROT", "HEDGEROW_SERVER__PROT: [server] has no key 'prot'; did you mean 'port'?"),
        ("HEDGEROW_SEVER__PORT", "HEDGEROW_SEVER__PORT: no section 'sever'; did you mean 'server'?"),
        ("HEDGEROW_SERVER__PORT", "server.port (environment): input should be a valid integer"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(monkeypatch, name, message):
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError) as caught:
        load(House)
    assert message in str(caught.value)


def test_what_belongs_to_other_processes_is_skipped(monkeypatch):
    """One file, and one environment, may serve the server and the control plane."""
    write("[control]\nanything = 1\n[registry]\nuri = 'x'")
    monkeypatch.setenv("HEDGEROW_CONTROL__HOST", "y")
    assert load(House) == House()


def test_variables_that_others_set_are_left_alone(monkeypatch):
    """Kubernetes sets such names for a service called hedgerow."""
    monkeypatch.setenv("HEDGEROW_SERVER_PORT", "tcp://10.0.0.1:8001")
    monkeypatch.setenv("HEDGEROW_SERVER", "not JSON")
    assert load(House) == House()


def test_a_named_file_must_exist():
    with pytest.raises(ConfigError, match=r"no configuration file gone\.toml"):
        load(House, file=Path("gone.toml"))


def test_a_secret_comes_from_its_file_or_nearer_from_the_environment(monkeypatch):
    write("from file\n", "key.txt")
    write("[server]\nkey_file = 'key.txt'")
    key = load(House).server.key
    assert key is not None
    assert key.get_secret_value() == "from file"
    monkeypatch.setenv("HEDGEROW_SERVER__KEY", "from environment")
    key = load(House).server.key
    assert key is not None
    assert key.get_secret_value() == "from environment"


def test_a_secret_shows_only_when_it_is_asked_to(monkeypatch):
    monkeypatch.setenv("HEDGEROW_SERVER__KEY", "hush")
    found = load(House)
    assert "hush" not in repr(found) + str(found) + found.model_dump_json()
    assert House.model_validate_json(found.model_dump_json(context=REVEAL)) == found


def test_a_wrong_value_is_not_repeated_when_it_may_be_secret(monkeypatch):
    """A token put under the wrong key must not end in the log."""
    monkeypatch.setenv("HEDGEROW_SERVER__PORT", "hush")
    with pytest.raises(ConfigError) as caught:
        load(House)
    assert "hush" not in str(caught.value)

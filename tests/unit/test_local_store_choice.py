"""Whether a stack runs its own PostgreSQL and Valkey, or the configuration names others."""

import pytest
from hedgerow_local import feature_store
from hedgerow_local.feature_store import CACHE, STORE, choose

ELSEWHERE = "postgresql://db/features"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty directory to work in, where no configuration lies, and short enough for sockets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hedgerow_local.sockets.LONGEST", 4096)
    for name in (STORE, CACHE, f"{STORE}_FILE", f"{CACHE}_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "stack"


def test_both_are_run_unless_named(root):
    chosen = choose(root, {})
    assert set(chosen.programs) == {"postgres", "valkey"}
    assert chosen.environment() == {STORE: chosen.store, CACHE: chosen.cache}
    assert chosen.store.endswith(f"host={root}/run")
    assert chosen.cache == f"unix://{root}/run/valkey.sock"
    (root / "run" / "valkey.sock").touch()
    chosen.close()
    assert not (root / "run").exists()


def test_a_store_named_anywhere_is_used_and_not_run(root, monkeypatch, tmp_path):
    """Its DSN may hold a password: the stack passes none on, the servers read it where it stands."""
    ways = {
        "setting": lambda: {STORE: ELSEWHERE},
        "environment": lambda: monkeypatch.setenv(STORE, ELSEWHERE) or {},
        "file": lambda: monkeypatch.setenv(f"{STORE}_FILE", "dsn.txt") or {},
        "toml": lambda: (tmp_path / "hedgerow.toml").write_text(f'[features]\nstore = "{ELSEWHERE}"') and {},
    }
    for way, name in ways.items():
        settings = name()
        chosen = choose(root, settings)
        assert set(chosen.programs) == {"valkey"}, way
        assert chosen.store == "", way
        assert STORE not in chosen.environment(), way
        monkeypatch.delenv(STORE, raising=False)
        monkeypatch.delenv(f"{STORE}_FILE", raising=False)


@pytest.mark.parametrize("text", ["", "[features]\nbudget_ms = 5", "features = 3", "not = toml = at all"])
def test_a_configuration_without_a_cache_leaves_it_to_the_stack(root, tmp_path, text):
    """Also one that the servers will refuse: they say what is wrong with it."""
    (tmp_path / "hedgerow.toml").write_text(text)
    assert "valkey" in choose(root, {}).programs


def test_the_names_are_those_of_the_servers_settings():
    from hedgerow_server.settings import Settings

    keys = Settings.model_fields["features"].annotation.model_fields
    for variable in (feature_store.STORE, feature_store.CACHE):
        assert variable.removeprefix("HEDGEROW_FEATURES__").lower() in keys

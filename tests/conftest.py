"""Puts this folder on the path, what tests share lies here; and keeps each test's environment its own."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A failed assert tells its values only where pytest has rewritten it: of itself, in test files and plugins.
# The modules that tests share must be named for it before anything imports them.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.rglob("*.py")))

#: A real PostgreSQL and a real Valkey.
pytest_plugins = ("feature_store",)

# How long an example takes is the machine's business: a busy one is no failure.
settings.register_profile("hedgerow", deadline=None, suppress_health_check=(HealthCheck.too_slow,))
settings.load_profile("hedgerow")

#: Of these, a later test's processes would inherit what an earlier one left.
OURS = ("HEDGEROW_", "MLFLOW_")


@pytest.fixture(autouse=True)
def _own_environment():
    """Takes back the variables a test leaves behind: MLflow's `set_tracking_uri`, say, exports one."""
    before = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    yield
    for name in [name for name in os.environ if name.startswith(OURS)]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)

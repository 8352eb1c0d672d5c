"""Parity with TRL and transformers: skipped, with a reason, where they are missing."""

import importlib.util
import os

import pytest

LIBRARIES = ("trl", "transformers")
MISSING = "trl and transformers are in the extra 'parity': pip install -e '.[parity]'"

# No warning about what is experimental, and no talk with a server. Read when the
# libraries are imported.
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
for name in (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
):
    os.environ[name] = "1"


def pytest_collect_file(file_path, parent):
    """Skip this folder before any of its modules imports what is not there."""
    if not all(importlib.util.find_spec(library) for library in LIBRARIES):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_itemcollected(item):
    """What the libraries will rename is no concern of these tests."""
    item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))

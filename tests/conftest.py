"""Settings of every test process."""

from __future__ import annotations

import gc
import os

import pytest

# No test asks a hub; and small models load without a bar, as the command does it.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the imports have left stays until the end: the collector need not walk a million objects again and again."""
    gc.collect()
    gc.freeze()

"""Settings of every test process."""

from __future__ import annotations

import os

# No test asks a hub; and small models load without a bar, as the command does it.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

"""The images of a config, split, and what a network is shown of them.

Small sets lie on the device whole (`Resident`); of encoded images each step's views come from the
host (`Streamed`). Training knows them only as `Data`, testing as `TestData`.
"""

from experiments.data.base import (
    Arrays,
    Data,
    Feed,
    Opened,
    Progress,
    TestData,
    Tested,
    test_sizes,
    total_steps,
)
from experiments.data.opening import check, expected, open_data, prepare
from experiments.data.resident import Resident, ResidentTests
from experiments.data.streamed import Streamed, StreamedTests
from experiments.data.views import inherited, stored_size

__all__ = [
    "Arrays",
    "Data",
    "Feed",
    "Opened",
    "Progress",
    "Resident",
    "ResidentTests",
    "Streamed",
    "StreamedTests",
    "TestData",
    "Tested",
    "check",
    "expected",
    "inherited",
    "open_data",
    "prepare",
    "stored_size",
    "test_sizes",
    "total_steps",
]

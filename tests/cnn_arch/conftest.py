"""What the tests of weight files share."""

import tracemalloc

import pytest

from cnn_arch.errors import WeightsError
from cnn_arch.weight_files import read


@pytest.fixture
def refused(tmp_path):
    """Checks that bytes are refused for a reason, naming the file and taking little memory."""

    def check(data, reason):
        path = tmp_path / "weights"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(WeightsError, match=reason) as caught:
                read(path)
            assert tracemalloc.get_traced_memory()[1] < (1 << 24) + 20 * len(data)
        finally:
            tracemalloc.stop()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert "\n" not in str(caught.value)

    return check

"""What tests of encoded images share."""

import pytest


@pytest.fixture
def no_pauses(monkeypatch):
    """A file that can't be read is read again at once."""
    monkeypatch.setattr("input_pipeline.sources.source.PAUSES", (0.0, 0.0))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Where a user's cache keeps what was found out of files: nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cnn-depth" / "index"

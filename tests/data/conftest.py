import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder with the real corpora."""
    folder = os.environ.get("RNNKIT_DATA_DIR")
    if not folder:
        pytest.skip("RNNKIT_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no RNNKIT_DATA_DIR."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda name: folder / name)
    monkeypatch.delenv("RNNKIT_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder / "rnnkit"

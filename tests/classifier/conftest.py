"""What the classifier's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def parity(shared_data: Path) -> Path:
    """Checkpoints and outputs of the real fairseq-signals."""
    folder = shared_data.parent / "fairseq_signals_parity"
    if not folder.is_dir():
        pytest.skip("the parity fixtures are not beside this checkout")
    return folder

"""A small ``python -m benchmarks.migration``: visitors do not notice that their sessions are moved."""

from pathlib import Path

import pytest

from benchmarks.migration import migrate

pytestmark = pytest.mark.once

SESSIONS, VISITORS = 2000, 60


def test_nobody_is_signed_out_and_nobody_who_has_signed_out_comes_back(tmp_path: Path) -> None:
    result = migrate(SESSIONS, VISITORS, "sqlite", seed=1, folder=tmp_path)
    assert result.wrong == []
    assert result.signed_out > 0
    assert len(result.times) > VISITORS

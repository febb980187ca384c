"""`python -m tests.support.without_hiredis ...` runs pytest as if hiredis were not installed."""

import sys

if __name__ == "__main__":
    sys.modules["hiredis"] = None  # type: ignore[assignment]  # what says to import that there is none

    import pytest
    from redis.utils import HIREDIS_AVAILABLE

    assert not HIREDIS_AVAILABLE
    sys.exit(pytest.main(sys.argv[1:]))

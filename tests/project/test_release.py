"""`make release-check` tries the lowest version of each dependency."""

import pytest

from tests.release.__main__ import lowest

pytestmark = pytest.mark.once


def test_the_lowest_version_is_the_bound() -> None:
    assert lowest("django<6.2,>=5.2.2") == "django==5.2.2"
    assert lowest('msgspec>=0.19; extra == "typed"') == "msgspec==0.19"


def test_a_dependency_without_a_lowest_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'tqdm<5'"):
        lowest("tqdm<5")

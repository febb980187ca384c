import unittest
from typing import Any

from django.test.runner import DiscoverRunner
from django.test.utils import iter_test_cases, modify_settings  # type: ignore[attr-defined]

from .selection import EXCLUDED, LABELS


class Runner(DiscoverRunner):
    """Leaves out the EXCLUDED tests, and fails if a label has fewer tests than LABELS says."""

    def setup_test_environment(self, **kwargs: Any) -> None:
        super().setup_test_environment(**kwargs)
        # runtests.py overwrites the INSTALLED_APPS of the settings module.
        self.installed = modify_settings(INSTALLED_APPS={"append": "gsession_django"})
        self.installed.enable()

    def teardown_test_environment(self, **kwargs: Any) -> None:
        self.installed.disable()
        super().teardown_test_environment(**kwargs)

    def load_tests_for_label(self, label: str, discover_kwargs: dict[str, str]) -> unittest.TestSuite:
        tests = [
            test
            for test in iter_test_cases(super().load_tests_for_label(label, discover_kwargs))
            if test.id() not in EXCLUDED
        ]
        self.log(f"{len(tests):5} of {label}")
        if len(tests) < LABELS[label]:
            raise RuntimeError(f"{label} has too few tests. LABELS in selection.py expects at least {LABELS[label]}.")
        return unittest.TestSuite(tests)

import os
import shutil

import pytest
from django.conf import settings


def pytest_unconfigure(config: pytest.Config) -> None:
    if "GSESSION_TEST_FILE_PATH" not in os.environ and config.pluginmanager.hasplugin("django"):
        shutil.rmtree(str(settings.SESSION_FILE_PATH), ignore_errors=True)

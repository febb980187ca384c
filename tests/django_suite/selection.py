"""Which of Django's tests run on each of our engines."""

# Each label, and the least number of its tests that must be found: a class that a later Django
# renames or moves must not pass by running nothing.
LABELS = {
    "tests.django_suite.engine_tests": 67,
    "sessions_tests.tests.SessionMiddlewareTests": 10,
    "sessions_tests.tests.SessionBaseTests": 13,
    # What stands on sessions: messages, logging in and out, the test client, CSRF_USE_SESSIONS.
    "messages_tests": 109,
    "auth_tests.test_auth_backends": 108,
    "auth_tests.test_basic": 17,
    "auth_tests.test_login": 3,
    "auth_tests.test_middleware": 16,
    "auth_tests.test_views": 119,
    "async.test_async_auth": 11,
    "csrf_tests": 119,
    "test_client": 118,
    "test_client_regress": 97,
}

# Each test that does not run, and why. MiddlewareTests in engine_tests.py has the counterparts of
# the first two.
EXCLUDED = {
    "sessions_tests.tests.SessionMiddlewareTests.test_empty_session_saved": (
        "reads the table of Django's database engine"
    ),
    "sessions_tests.tests.SessionMiddlewareTests.test_session_update_error_redirect": (
        "names Django's database engine"
    ),
    "auth_tests.test_middleware.TestLoginRequiredMiddleware.test_protected_view_logged_in_performance": (
        "counts the SQL query that Django's database engine makes"
    ),
}

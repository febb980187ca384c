"""The tests of Django's that run on each of our engines."""

# Each label, with the smallest number of its tests. If a later Django renames or moves a class,
# the run must fail, and not pass with no tests.
LABELS = {
    "tests.django_suite.engine_tests": 67,
    "sessions_tests.tests.SessionMiddlewareTests": 10,
    "sessions_tests.tests.SessionBaseTests": 13,
    # Users of sessions: messages, logging in and out, the test client, CSRF_USE_SESSIONS.
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

# Each excluded test, with the reason. MiddlewareTests in engine_tests.py has counterparts of the
# first two.
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

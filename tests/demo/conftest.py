import re
from collections.abc import Generator, Iterator

import pytest

from tests.demo.support import Serve, Server, Visitor

ENGINES = ("gsession_django.backends.file", "gsession_django.backends.database", "testproject.sessions")


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start the site on an engine, once for each engine and test process."""
    servers: dict[str, Server] = {}

    def start(engine: str) -> Server:
        if engine not in servers:
            server = Server(tmp_path_factory.mktemp("demo"), engine)
            server.manage("demo_setup")
            server.start()
            servers[engine] = server
        return servers[engine]

    yield start
    for server in servers.values():
        server.stop()
    for server in servers.values():
        printed = "".join(server.output)
        assert not re.search("Internal Server Error|Exception (occurred|ignored)", printed), printed


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest, serve: Serve) -> Server:
    return serve(request.param)


@pytest.fixture
def visitor(server: Server) -> Visitor:
    return Visitor(server.url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        report.sections.append(("Server output", "".join(server.output[-100:])))
    return report

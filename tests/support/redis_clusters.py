"""Real Redis Clusters for the tests: three masters with a replica each, on free ports. They end with the tests."""

import atexit
import functools
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from redis.crc import key_slot

from tests.support.redis_servers import RedisServer, settings_for

CLIENT_CLASS: Final = "gsession_django.redis.cluster.ClusterClient"
PATIENCE: Final = 60.0
_SLOTS: Final = 16384
_MASTERS: Final = 3
# The nodes' bus is on a port 10000 higher. Both are below the ports that the system hands out itself.
_PORTS: Final = range(12000, 22000)
_BUS: Final = 10000
# A short timeout while the cluster forms: nodes exchange their news after half of it.
_FORMING: Final = 1000


def wait_for(what: str, found: Callable[[], Any]) -> Any:
    """Return the result of `found` once it is true. Redis has no event for this."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if result := found():
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"This did not happen within {PATIENCE:g} seconds: {what}.")
        time.sleep(0.02)


class Node(RedisServer):
    """One server of a cluster."""

    id = ""

    def start(self) -> None:
        for _ in range(100):
            self.port = random.choice(_PORTS)
            if not all(map(_is_free, (self.port, self.port + _BUS))):
                continue
            try:
                self._run()
            except RuntimeError as error:
                if "in use" not in str(error):
                    raise
            else:
                return
        raise RuntimeError(f"No port is free in {_PORTS}.")

    def is_up(self) -> bool:
        return self._process.poll() is None

    def slots(self) -> set[int]:
        """Return the slots that the node reports as its own, as a master."""
        found: set[int] = set()
        for first, last, (_, port, *_), *_ in self.cluster("SLOTS"):
            if port == self.port:
                found.update(range(first, last + 1))
        return found

    def cluster(self, *words: Any) -> Any:
        with self.client() as client:
            return client.execute_command(f"CLUSTER {words[0]}", *words[1:])

    def state(self) -> dict[str, str]:
        with self.client() as client:
            return dict(client.execute_command("CLUSTER INFO"))

    def is_master(self) -> bool:
        with self.client() as client:
            return bool(client.info("replication")["role"] == "master")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class RedisCluster:
    """A cluster of six servers.

    Args:
        node_timeout: milliseconds after which a silent node counts as dead. It is long by default, because nodes on a
            busy machine may be silent too.

    Attributes:
        nodes: the servers. First the three that begin as masters, then a replica of each in the same order.
    """

    def __init__(self, node_timeout: int = 60_000) -> None:
        config = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": str(_FORMING),
            "cluster_replica_validity_factor": "0",
            "repl_diskless_sync": "yes",
            "repl_diskless_sync_delay": "0",
            "appendonly": "yes",
        }
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.push(self._stack)
            self.nodes = [self._stack.enter_context(Node(**config)) for _ in range(2 * _MASTERS)]
            self._form()
            for node in self.nodes:
                with node.client() as client:
                    client.config_set("cluster-node-timeout", node_timeout)
            undo.pop_all()

    def _form(self) -> None:
        bounds = [_SLOTS * number // _MASTERS for number in range(_MASTERS + 1)]
        for number, node in enumerate(self.nodes):
            node.id = node.cluster("MYID").decode()
            node.cluster("SET-CONFIG-EPOCH", number + 1)
            if number < _MASTERS:
                node.cluster("ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.cluster("MEET", "127.0.0.1", other.port)
        everybody = {node.id for node in self.nodes}
        wait_for("the nodes have met", lambda: all(everybody == set(self._seen_by(node)) for node in self.nodes))
        for number in range(_MASTERS):
            self.nodes[number + _MASTERS].cluster("REPLICATE", self.nodes[number].id)
        wait_for("the cluster is ready", self._is_ready)

    def _seen_by(self, node: Node) -> dict[str, Any]:
        """Return a node's view of each node: the id of its master, or "-", and its flags."""
        text = node.cluster("NODES")
        if isinstance(text, dict):  # redis-py has parsed it already
            return {each["node_id"]: (each["master_id"], each["flags"]) for each in text.values()}
        lines = [line.split() for line in text.decode().splitlines()]
        return {words[0]: (words[3], words[2]) for words in lines}

    def _is_ready(self) -> bool:
        """Whether all nodes agree, and each replica has its master's data."""
        replicas = self.nodes[_MASTERS:]
        masters = {node.id: self.nodes[number].id for number, node in enumerate(replicas)}
        for node in self.nodes:
            seen = self._seen_by(node)
            if node.state()["cluster_state"] != "ok" or any(seen[id][0] != master for id, master in masters.items()):
                return False
            with node.client() as client:
                info = client.info("replication")
                if node in replicas and info.get("master_link_status") != "up":
                    return False
                if node not in replicas and info["connected_slaves"] != 1:
                    return False
        return True

    def url(self, query: str = "") -> str:
        return self.nodes[0].url(query)

    @staticmethod
    def nobody() -> str:
        """Return a URL without a server."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            return f"redis://127.0.0.1:{free.getsockname()[1]}/0"

    def master_of(self, key: str) -> Node:
        """Return the server that reports the slot of a key as its own."""
        slot = key_slot(key.encode())
        return wait_for(f"one server has the slot {slot}", lambda: self._owner(slot))  # type: ignore[no-any-return]

    def _owner(self, slot: int) -> Node | None:
        owners = [node for node in self.nodes if node.is_up() and slot in node.slots()]
        return owners[0] if len(owners) == 1 else None

    def moving(self, key: str) -> "Moving":
        """Begin to move the slot of a key to another master."""
        source = self.master_of(key)
        target = next(node for node in self.nodes if node is not source and node.is_master())
        return Moving(self, key_slot(key.encode()), source, target)

    def is_well(self) -> bool:
        """Whether all servers that are up have all slots covered."""
        return all(node.state()["cluster_state"] == "ok" for node in self.nodes if node.is_up())

    def stop(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Moving:
    """A slot on its way from one master to another, as ``redis-cli --cluster reshard`` moves it.

    The move is finished at the end of the block.
    """

    def __init__(self, cluster: RedisCluster, slot: int, source: Node, target: Node) -> None:
        self._cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target
        target.cluster("SETSLOT", slot, "IMPORTING", source.id)
        source.cluster("SETSLOT", slot, "MIGRATING", target.id)

    def some_keys(self, number: int = 10) -> list[str]:
        """Return some keys that are still on the first master."""
        return list(self.source.cluster("GETKEYSINSLOT", self.slot, number))

    def move(self, *keys: str) -> None:
        with self.source.client() as client:
            client.execute_command("MIGRATE", "127.0.0.1", self.target.port, "", 0, 10_000, "KEYS", *keys)

    def finish(self) -> None:
        """Move the other keys, and tell all nodes."""
        while keys := self.some_keys():
            self.move(*keys)
        others = [node for node in self._cluster.nodes if node.is_master()]
        for node in (self.target, self.source, *others):
            node.cluster("SETSLOT", self.slot, "NODE", self.target.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish()


@functools.cache
def shared() -> RedisCluster:
    """Return this process's cluster. Tests must not harm it, and use their own keys."""
    cluster = RedisCluster()
    atexit.register(cluster.stop)
    return cluster


def cluster_settings(engine: str, location: Any, entry: Any = None, **options: Any) -> dict[str, Any]:
    """Return the settings of a site with sessions in a cluster. Its timeouts allow for a busy machine."""
    entry = dict(entry or {})
    patient = {"SOCKET_CONNECT_TIMEOUT": PATIENCE, "SOCKET_TIMEOUT": PATIENCE}
    entry["OPTIONS"] = {"CLIENT_CLASS": CLIENT_CLASS, **patient, **entry.get("OPTIONS", {})}
    return settings_for(engine, location, entry, **options)

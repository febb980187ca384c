"""What the Redis engines send, byte for byte."""

import pytest

from gsession_django.redis.commands import Batch, Script, _pack_in_python

COMMANDS = [
    ("GET", "prefix:0123"),
    ("SET", "é", b"\xff\x00\r\n", "EX", 1209600, "NX"),
    ("EVALSHA", "0" * 40, 2, "{a}", "{a}:large", -1, b""),
]


def test_commands_are_arrays_of_bulk_strings() -> None:
    assert Batch(("GET", "é"), ("EXPIRE", "k", -1)).packed() == (
        b"*2\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n*3\r\n$6\r\nEXPIRE\r\n$1\r\nk\r\n$2\r\n-1\r\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_hiredis_packs_as_python_does(command: tuple[object, ...]) -> None:
    assert Batch(command).packed() == _pack_in_python(command)


def test_a_script_is_sent_by_its_digest_and_in_full_where_it_is_not_known() -> None:
    script = Script("return ARGV[1]")
    batch = Batch(script(("key",), "value"), ("GET", "key"), repeat=False)
    (name, sha, *rest), get = batch.commands
    assert (name, rest, get) == ("EVALSHA", [1, "key", "value"], ("GET", "key"))
    in_full = batch.in_full()
    assert in_full.commands == (("EVAL", "return ARGV[1]", 1, "key", "value"), ("GET", "key"))
    assert not in_full.repeat
    assert len(sha) == 40

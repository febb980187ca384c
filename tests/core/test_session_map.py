"""SessionMap: the changes of a request to a session, and how they merge."""

import asyncio
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from pytest_django import Settings

from gsession_django import SessionMap
from gsession_django.core.pairs import EXPIRY_KEY, Pairs
from gsession_django.core.values import MISSING, UNFETCHED, Encoded
from gsession_django.serializers import decode, encode


def read(**data: Any) -> SessionMap:
    return SessionMap(data)


class TestChanges:
    def test_a_session_that_was_only_read_has_no_change(self) -> None:
        session = read(number=1, cart={"apple": [1]})
        assert session["number"] == 1
        assert session["cart"]["apple"][0] == 1
        assert dict(session.items()) == {"number": 1, "cart": {"apple": [1]}}
        assert not session.has_changes()
        assert session.changed == {}
        assert session.removed == set()

    @pytest.mark.parametrize(
        ("before", "after"), [(1, 2), (1, True), (1, 1.0), (0.0, -0.0), ("1", 1), (None, 0), ([], {})]
    )
    def test_setting_another_value_is_a_change(self, before: Any, after: Any) -> None:
        session = read(key=before)
        session["key"] = after
        assert list(session.changed) == ["key"]

    @pytest.mark.parametrize("value", [1, "text", None, 1.5, True, [1, {"a": 2}], {"a": {"b": []}}])
    def test_setting_the_old_value_is_not_a_change(self, value: Any) -> None:
        session = SessionMap({"key": value, "other": 1})
        session["key"] = 12
        session["key"] = value
        assert not session.has_changes()

    def test_a_change_in_place_is_a_change(self) -> None:
        session = read(cart={"apple": {"sizes": [1, 2]}}, other={})
        session["cart"]["apple"]["sizes"].append(3)
        assert session.changed == {"cart": {"apple": {"sizes": [1, 2, 3]}}}

    def test_a_change_in_place_and_back_is_not_a_change(self) -> None:
        session = read(cart={"apple": 1})
        session["cart"]["apple"] = 2
        session["cart"]["apple"] = 1
        assert not session.has_changes()

    @pytest.mark.parametrize(
        "get", [lambda s: s.get("cart"), lambda s: dict(s.items())["cart"], lambda s: next(iter(s.values()))]
    )
    def test_every_way_of_getting_a_value_watches_it(self, get: Any) -> None:
        session = read(cart={"apple": 1})
        get(session)["apple"] = 2
        assert session.changed == {"cart": {"apple": 2}}

    def test_a_key_that_was_deleted_is_removed(self) -> None:
        session = read(one=1, two={})
        del session["one"]
        assert session.pop("two") == {}
        session["three"] = 3
        del session["three"]
        assert session.removed == {"one", "two"}
        assert session.changed == {}
        with pytest.raises(KeyError):
            del session["one"]

    def test_a_key_that_was_deleted_and_set_again_is_changed_by_value(self) -> None:
        session = read(one=1, two=2)
        del session["one"]
        del session["two"]
        session["one"] = 1
        session["two"] = 3
        assert (session.changed, session.removed) == ({"two": 3}, set())

    def test_clearing_a_session_changes_all_of_it(self) -> None:
        session = read(one=1)
        session.clear()
        assert session.has_changes()
        assert session.cleared
        session["two"] = 2
        assert session.changed == {"two": 2}
        assert dict(session) == {"two": 2}

    def test_different_bytes_of_another_program_are_not_a_change(self) -> None:
        session = SessionMap({"cart": Encoded(b'{ "apple" : 1 }'), "number": Encoded(b" 1 ")})
        assert session["cart"] == {"apple": 1}
        session["number"] = 1
        session["cart"]["apple"] = 1
        assert not session.has_changes()

    def test_a_value_that_cannot_be_encoded_is_a_change_and_an_error_that_names_its_key(self) -> None:
        session = read(cart={})
        session["cart"] = {"thing": object()}
        with pytest.raises(TypeError, match="session value 'cart' cannot be stored by SESSION_SERIALIZER"):
            session.has_changes()

    def test_it_goes_by_the_serializer(self, settings: Settings) -> None:
        settings.SESSION_SERIALIZER = "tests.core.test_serializers.PickleSerializer"
        session = read(cart={1: {2}})
        session["cart"][1].add(3)
        assert session.merged_onto({"cart": {1: {2}, 4: 5}}) == {"cart": {1: {2, 3}, 4: 5}}


class TestAltered:
    def test_a_scalar_costs_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = read(number=1, text="a", nothing=None, yes=True, half=0.5)
        list(session.values())
        monkeypatch.setattr("gsession_django.core.comparing.encode", None)
        assert not session.altered()

    def test_it_counts_from_the_baseline(self) -> None:
        session = read(cart={"apple": 1}, later={})
        session["cart"]["apple"] = 2
        assert session.altered()
        session.take_baseline()
        assert not session.altered()
        session["cart"]["apple"] = 3
        assert session.altered()
        session["cart"]["apple"] = 2
        assert not session.altered()
        session["later"]["x"] = 1
        assert session.altered()

    def test_the_baseline_hides_no_change_from_saving(self) -> None:
        session = read(cart={"apple": 1})
        session["cart"]["apple"] = 2
        session.take_baseline()
        assert session.changed == {"cart": {"apple": 2}}

    def test_a_value_that_was_set_is_watched_from_the_baseline_on(self) -> None:
        session = read()
        session["cart"] = cart = {"apple": 1}
        session.take_baseline()
        assert not session.altered()
        cart["apple"] = 2
        assert session.altered()


class TestMerging:
    @pytest.mark.parametrize(
        ("base", "mine", "current", "merged"),
        [
            ({}, {"mine": 1}, {"theirs": 2}, {"mine": 1, "theirs": 2}),
            ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 2}),
            ({"a": 1}, {"a": 1}, {"a": 3}, {"a": 3}),
            ({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 2}, {"b": 2}),
            ({"a": 1}, {"a": 1, "b": 2}, {}, {"b": 2}),
            ({"d": {}}, {"d": {"x": 1}}, {"d": {"y": 2}}, {"d": {"x": 1, "y": 2}}),
            ({}, {"d": {"x": 1}}, {"d": {"y": 2}}, {"d": {"x": 1, "y": 2}}),
            ({"d": {"x": 1, "y": 1}}, {"d": {"y": 1}}, {"d": {"x": 1, "y": 2, "z": 3}}, {"d": {"y": 2, "z": 3}}),
            ({"d": {"x": 1}}, {"d": {"x": 2}}, {"d": {}}, {"d": {"x": 2}}),
            ({"d": {"x": 1}}, {"d": {"x": 1, "y": 2}}, {}, {"d": {"y": 2}}),
            ({"d": {"x": 1}}, {"d": {"x": 1, "y": 2}}, {"d": [1]}, {"d": {"x": 1, "y": 2}}),
            ({"d": [1]}, {"d": {"x": 1}}, {"d": {"y": 1}}, {"d": {"x": 1, "y": 1}}),
            ({"d": {"e": {"f": {"x": 1}}}}, {"d": {"e": {"f": {"x": 2}}}},
             {"d": {"e": {"f": {"x": 1, "y": 3}, "g": 4}}}, {"d": {"e": {"f": {"x": 2, "y": 3}, "g": 4}}}),
            ({"l": [1]}, {"l": [1, 2]}, {"l": [1, 3]}, {"l": [1, 2]}),
            ({"l": [1]}, {"l": [1]}, {"l": [1, 3]}, {"l": [1, 3]}),
            ({"d": {"x": 1}}, {"d": 5}, {"d": {"x": 2}}, {"d": 5}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("encoded", [False, True])
    def test_three_ways(
        self, base: dict[str, Any], mine: dict[str, Any], current: dict[str, Any], merged: Any, encoded: bool
    ) -> None:
        session = SessionMap({key: Encoded(encode(value)) for key, value in base.items()} if encoded else dict(base))
        for key in list(session):
            if key not in mine:
                del session[key]
        for key, value in mine.items():
            session[key] = value
        assert session.merged_onto(current) == merged

    def test_what_was_changed_in_place_merges_like_what_was_set(self) -> None:
        session = read(cart={"apple": 1, "pear": 1})
        cart = session["cart"]
        del cart["pear"]
        cart["plum"] = 1
        assert session.merged_onto({"cart": {"apple": 2, "pear": 1, "fig": 1}}) == {
            "cart": {"apple": 2, "plum": 1, "fig": 1}
        }

    def test_a_cleared_session_merges_with_nothing(self) -> None:
        session = read(one=1)
        session.clear()
        session["cart"] = {"apple": 1}
        assert session.merged_onto({"one": 2, "cart": {"pear": 1}}) == {"cart": {"apple": 1}}

    def test_keys_that_the_serializer_makes_text_of_are_merged_as_text(self) -> None:
        session = read()
        session["cart"] = {5: 1}
        session.saved()
        session["other"] = 1
        session["cart"][6] = 1
        assert session.merged_onto({"cart": {"5": 7}}) == {"cart": {"5": 7, "6": 1}, "other": 1}

    def test_the_current_session_is_left_as_it_is(self) -> None:
        current = {"cart": {"pear": {"n": 1}}}
        session = read(cart={})
        session["cart"]["apple"] = 1
        session["cart"]["pear"] = {"m": 2}
        session.merged_onto(current)
        assert current == {"cart": {"pear": {"n": 1}}}

    def test_the_order_is_the_requests_with_what_others_added_after_it(self) -> None:
        session = read(one=1, two=2, cart={"apple": 1, "pear": 1})
        session["three"] = 3
        session["cart"] = {"fig": 1, "pear": 1, "apple": 2}
        merged = session.merged_onto({"theirs": 1, "cart": {"plum": 1, "apple": 1, "pear": 1}, "two": 5, "one": 1})
        assert list(merged) == ["one", "two", "cart", "three", "theirs"]
        assert list(merged["cart"]) == ["fig", "pear", "apple", "plum"]

    def test_one_key_can_be_merged_alone(self) -> None:
        session = read(cart={"apple": 1})
        session["cart"]["pear"] = 1
        assert session.merged_value("cart", {"apple": 1, "plum": 1}) == {"apple": 1, "plum": 1, "pear": 1}
        assert session.merged_value("cart", MISSING) == {"pear": 1}


class TestSaved:
    def test_what_was_saved_is_no_change_any_more(self) -> None:
        session = read(cart={"apple": 1}, one=1)
        session["cart"]["apple"] = 2
        session["new"] = {"x": 1}
        del session["one"]
        session.saved()
        assert not session.has_changes()
        assert not session.altered()

    def test_a_cleared_session_is_cleared_no_more(self) -> None:
        session = read(one=1)
        session.clear()
        session.saved()
        assert not session.cleared
        assert not session.has_changes()

    def test_what_others_wrote_gets_into_no_object_of_the_request(self) -> None:
        session = SessionMap({"cart": {"apple": 1}}, version=5)
        cart = session["cart"]
        cart["pear"] = 2
        session.merged_onto({"cart": {"plum": 3}, "theirs": [4]})
        session.saved()
        assert cart == {"apple": 1, "pear": 2}
        assert session == {"cart": {"apple": 1, "pear": 2}}

    def test_what_others_wrote_is_kept_by_the_next_save(self) -> None:
        session = SessionMap({"cart": {"apple": 1}}, version=5)
        session["cart"]["pear"] = 2
        stored = session.merged_onto({"cart": {"apple": 1, "plum": 3}, "theirs": 4})
        session.version = 6
        session.saved()
        assert session.version is None
        assert not session.has_changes()
        session["cart"]["fig"] = 5
        del session["cart"]["pear"]
        assert session.merged_onto(stored) == {"cart": {"apple": 1, "plum": 3, "fig": 5}, "theirs": 4}

    def test_without_a_merge_the_version_is_that_of_what_was_stored(self) -> None:
        session = SessionMap({"one": 1}, version=5)
        session["one"] = 2
        session.version = 6
        session.saved()
        assert session.version == 6

    def test_what_somebody_holds_is_watched_on(self) -> None:
        session = read(cart={"apple": 1})
        cart = session["cart"]
        session["new"] = new = [1]
        session.saved()
        cart["pear"] = 1
        new.append(2)
        assert session.altered()
        assert session.changed == {"cart": {"apple": 1, "pear": 1}, "new": [1, 2]}

    def test_what_was_done_while_it_was_saved_is_still_to_be_saved(self) -> None:
        session = read(cart={"apple": 1}, gone=1, same=1, again=1)
        cart = session["cart"]
        cart["pear"] = 1
        session["again"] = 2
        session["same"] = 2
        session["list"] = [1]
        save = session.saving()
        cart["plum"] = 1
        session["again"] = 3
        session["list"] = [1, 2]
        session["new"] = 1
        del session["gone"]
        session.saved(save)
        assert session.changed == {
            "cart": {"apple": 1, "pear": 1, "plum": 1},
            "again": 3,
            "list": [1, 2],
            "new": 1,
        }
        assert session.removed == {"gone"}
        assert session.read_as("cart") == encode({"apple": 1, "pear": 1})
        session.saved()
        assert not session.has_changes()

    def test_what_was_deleted_while_it_was_saved_is_removed_by_the_next_save(self) -> None:
        session = read(one=1)
        session["two"] = 2
        save = session.saving()
        del session["two"]
        session.saved(save)
        assert session.removed == {"two"}


class TestRenewsTtl:
    @pytest.mark.parametrize(
        ("base", "mine", "current", "renews"),
        [
            (None, None, None, True),
            (10, 10, 10, True),
            (10, 10, 20, False),
            (None, None, 20, False),
            (10, 10, None, False),
            (10, 30, 20, True),
            (10, None, 20, True),
        ],
    )
    def test_it_does_unless_only_another_request_set_an_expiry(
        self, base: Any, mine: Any, current: Any, renews: bool
    ) -> None:
        session = SessionMap({} if base is None else {EXPIRY_KEY: base})
        if mine != base:
            session.update({EXPIRY_KEY: mine}) if mine else session.pop(EXPIRY_KEY)
        assert session.renews_ttl({} if current is None else {EXPIRY_KEY: current}) is renews

    def test_a_cleared_session_does(self) -> None:
        session = SessionMap({EXPIRY_KEY: 10})
        session.clear()
        assert session.renews_ttl({EXPIRY_KEY: 20})


class TestEncoded:
    def test_a_value_is_decoded_when_it_is_first_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[bytes] = []

        def recording(data: bytes) -> Any:
            decoded.append(bytes(data))
            return decode(data)

        monkeypatch.setattr("gsession_django.core.pairs.decode", recording)
        session = SessionMap({"one": Encoded(b"1"), "two": Encoded(b'{"x": 2}')})
        assert decoded == []
        assert session["one"] == 1
        assert session["one"] == 1
        assert decoded == [b"1"]
        assert session.as_dict() == {"one": 1, "two": {"x": 2}}
        assert decoded == [b"1", b'{"x": 2}']

    @pytest.mark.parametrize(
        "use", [lambda s: s.get("bad"), lambda s: "bad" in s, lambda s: list(s), lambda s: s.as_dict()]
    )
    def test_a_value_that_cannot_be_decoded_is_absent_and_logged(
        self, use: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = SessionMap({"bad": Encoded(b"{"), "good": Encoded(b"1")})
        assert not use(session) or use(session) in (["good"], {"good": 1})
        assert "bad" not in session
        assert session["good"] == 1
        with pytest.raises(KeyError):
            session["bad"]
        assert [record.name for record in caplog.records] == ["django.security.SuspiciousSession"]
        assert "'bad'" in caplog.text


class Stored:
    """Hands out a session's values, and records which."""

    def __init__(self, **data: Any) -> None:
        self.data = data
        self.asked: list[str | None] = []

    def fetch(self, session: Pairs, key: str | None) -> None:
        self.asked.append(key)
        if key is not None and self.data.get(key) is not None:
            session.learn({key: self.data[key]})
        else:
            session.learn(self.data, complete=True)

    async def afetch(self, session: Pairs, key: str | None) -> None:
        self.fetch(session, key)

    def fetch_size(self) -> int:
        return len(self.data)


def partial(**data: Any) -> tuple[SessionMap, Stored]:
    session = SessionMap({})
    session.partial = True
    session.source = stored = Stored(**data)
    return session, stored


class TestFetching:
    def test_a_value_is_fetched_once(self) -> None:
        session, stored = partial(one=1, two=2)
        assert (session["one"], session.get("one"), "one" in session) == (1, 1, True)
        assert stored.asked == ["one"]

    def test_a_key_that_is_not_there_completes_the_session(self) -> None:
        session, stored = partial(one=1)
        assert session.get("other", 5) == 5
        with pytest.raises(KeyError):
            session["another"]
        assert "one" in session
        assert stored.asked == ["other"]

    def test_setting_a_key_fetches_nothing(self) -> None:
        session, stored = partial(one=1)
        session["one"] = 2
        assert (session["one"], session.changed, stored.asked) == (2, {"one": 2}, [])

    def test_deleting_a_key_fetches_it_to_know_whether_it_is_there(self) -> None:
        session, stored = partial(one=1)
        del session["one"]
        with pytest.raises(KeyError):
            del session["two"]
        assert (session.removed, stored.asked) == ({"one"}, ["one", "two"])
        assert list(session) == []

    def test_what_the_request_did_stands_when_the_rest_is_fetched(self) -> None:
        session, stored = partial(one=1, two=2, three=3, four={"x": 1})
        session["one"] = 10
        del session["two"]
        session["four"] = {}
        assert dict(session) == {"one": 10, "three": 3, "four": {}}
        assert (session.changed, session.removed) == ({"one": 10, "four": {}}, {"two"})
        assert session.merged_onto(stored.data) == {"one": 10, "three": 3, "four": {}}

    def test_a_large_value_stays_in_the_storage_until_it_is_asked_for(self) -> None:
        session = SessionMap({"small": 1, "large": UNFETCHED})
        session.source = stored = Stored(small=1, large=[1] * 9)
        assert "large" in session
        assert list(session) == ["small", "large"]
        assert len(session) == 2
        session["small"] = 2
        assert (session.changed, session.as_dict(), stored.asked) == ({"small": 2}, {"small": 2}, [])
        assert session["large"] == [1] * 9
        assert stored.asked == ["large"]

    def test_a_large_value_that_vanished_is_a_key_error(self) -> None:
        session = SessionMap({"large": UNFETCHED})
        session.source = Stored()
        with pytest.raises(KeyError):
            session["large"]
        assert "large" not in session

    def test_large_values_are_fetched_together_for_items(self) -> None:
        session = SessionMap({"one": UNFETCHED, "two": UNFETCHED})
        session.source = stored = Stored(one=1, two=2)
        assert dict(session.items()) == {"one": 1, "two": 2}
        assert stored.asked == [None]

    def test_on_a_running_loop_fetching_is_awaited(self) -> None:
        async def visit() -> None:
            session, stored = partial(one=1, two=2)
            with pytest.raises(SynchronousOnlyOperation, match="async methods"):
                session["one"]
            await session.afetch("one")
            await session.afetch("one")
            assert session["one"] == 1
            await session.afetch()
            assert dict(session) == {"one": 1, "two": 2}
            assert stored.asked == ["one", None]

        asyncio.run(visit())


def test_changing_it_while_it_is_iterated_is_an_error_as_for_a_dict() -> None:
    session = read(one=1, two=2)
    keys = iter(session)
    del session[next(keys)]
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        next(keys)


def test_it_compares_and_counts_like_a_dict() -> None:
    session = read(one=1, two={"x": 2})
    assert session == {"one": 1, "two": {"x": 2}}
    assert len(session) == 2
    assert bool(session)
    assert not SessionMap({})
    assert session.setdefault("one", 5) == 1
    assert session.pop("nothing", None) is None
    assert "three" not in session
    assert repr(session) == "SessionMap({'one': 1, 'two': {'x': 2}})"

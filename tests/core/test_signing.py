"""Tags: what is under one, and with which keys it is made."""

import itertools

from django.test import override_settings

from gsession_django.core.signing import TAG_SIZE, has_tag, tag_of


def test_a_tag_is_another_one_for_another_purpose_name_or_data_and_for_another_key() -> None:
    tags = []
    for key in ("one", "other"):
        with override_settings(SECRET_KEY=key):
            tags += [tag_of(*of) for of in itertools.product(("file", "database"), ("id", "id2"), (b"", b"data"))]
    assert len(set(tags)) == 16
    assert {len(tag) for tag in tags} == {TAG_SIZE}


def test_the_end_of_the_name_cannot_become_the_beginning_of_the_data() -> None:
    assert tag_of("file", "ab", b"c") != tag_of("file", "a", b"bc")


def test_one_of_several_tags_and_of_several_keys_is_enough() -> None:
    with override_settings(SECRET_KEY="first"):
        tag = tag_of("file", "id", b"data")
    with override_settings(SECRET_KEY="second", SECRET_KEY_FALLBACKS=["zeroth", "first"]):
        assert has_tag("file", "id", b"data", bytes(TAG_SIZE), tag)
        assert not has_tag("file", "id", b"data", bytes(TAG_SIZE), tag[1:])
        assert not has_tag("file", "id", b"other", tag)

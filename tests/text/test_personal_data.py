"""Patterns of personal data, on texts that have some and texts that look like it."""

from __future__ import annotations

import pytest

from safeedit.text.personal_data import Found, canonical, personal_data


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Call (212) 555-0143 now", Found("phone", "2125550143")),
        ("call 212-555-0143.", Found("phone", "2125550143")),
        ("+1 212.555.0143", Found("phone", "2125550143")),
        ("tel +44 20 7946 0958", Found("phone", "442079460958")),
        ("To Ann.Bell+x@Mail.Example.org, please", Found("email", "ann.bell+x@mail.example.org")),
        ("SSN 987-65-4320", Found("identity", "987654320")),
        ("card 4111 1111 1111 1111", Found("card", "4111111111111111")),
        ("GB82 WEST 1234 5698 7654 32", Found("iban", "gb82west12345698765432")),
    ],
)  # fmt: skip
def test_what_is_written_out_is_found(text: str, found: Found) -> None:
    assert personal_data(text) == (found,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "In 1984 there were 12,345 of them on page 555-0143",
        "4111 1111 1111 1112 fails Luhn's check",
        "0000 0000 0000 0000",
        "GB82 WEST 1234 5698 7654 33",
        "user@localhost and @handle",
        "ISBN 978-3-16-148410-0",
        "192.168.100.200 is no telephone",
        "1-23-4567",
    ],
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert personal_data(text) == ()


def test_the_same_number_spelt_twice_counts_once() -> None:
    assert len(personal_data("(212) 555-0143 or 212-555-0143")) == 1


def test_full_width_digits_are_digits() -> None:
    assert personal_data("２１２-５５５-０１４３") == (Found("phone", "2125550143"),)


def test_digits_of_any_script_and_what_shows_nothing_change_nothing() -> None:
    assert personal_data("٢١٢-٥٥٥-٠١٤٣") == (Found("phone", "2125550143"),)
    assert personal_data("212-5\u00ad55-\u200b0143") == (Found("phone", "2125550143"),)
    assert personal_data("ann@mail.exa\u200bmple.org") == (Found("email", "ann@mail.example.org"),)
    assert canonical("email", "Ann@mail.exa\u00admple.org") == "ann@mail.example.org"

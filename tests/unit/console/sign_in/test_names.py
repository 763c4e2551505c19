"""What users are called."""

from typing import Any

import pytest

from fleet_fn.console.sign_in.names import name_of


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": "alice", "email": "a@example.com", "email_verified": True}, "alice"),
        ({"email": "a@example.com", "email_verified": True}, "a@example.com"),
        ({"email": "boss@example.com"}, "id-1"),
        ({"email": "boss@example.com", "email_verified": "true"}, "id-1"),
        ({"preferred_username": "  "}, "id-1"),
        ({"preferred_username": 7}, "id-1"),
        ({"preferred_username": " a\n\x1b[31mb\u202e "}, "a��[31mb�"),
        ({"preferred_username": "x" * 101}, "x" * 99 + "…"),
        ({"preferred_username": "x" * 100}, "x" * 100),
    ],
)
def test_a_name_is_what_the_provider_vouches_for(claims: dict[str, Any], name: str) -> None:
    assert name_of({"sub": "id-1", **claims}) == name

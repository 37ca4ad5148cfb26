"""What the tests of the console share (see conftest.py)."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx

Visit = Callable[[str], httpx.Client]
"""`visit("admin")`: a client that has logged in with a key of that scope."""


def token(client: httpx.Client, page: str = "/console") -> str:
    """The CSRF token that the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get(page).text)
    assert found is not None
    return found[1]

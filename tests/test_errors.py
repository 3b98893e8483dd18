"""Words of messages."""

from __future__ import annotations

import pytest

from emim_nnunet.errors import listed


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, ""), (1, "a"), (3, "a; b; c"), (4, "a; b; c and 1 more (there)"), (1000, "a; b; c and 997 more (there)")],
)
def test_a_long_list_is_cut_and_says_so(number: int, expected: str) -> None:
    names = ["a", "b", "c", *("x" * (number - 3))][:number]
    assert listed(names, 3, separator="; ", where=" (there)") == expected

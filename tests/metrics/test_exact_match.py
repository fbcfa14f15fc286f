import pytest

from rnnkit.metrics import ExactMatch


def test_lines_count_that_are_equal_but_for_white_space() -> None:
    match = ExactMatch()
    match.update(["a  b ", "", "Ab", "a"], ["a b", "", "ab", "b"])
    assert float(match.compute()) == 75.0
    cased = ExactMatch(lowercase=False)
    cased.update(["a  b ", "", "Ab", "a"], ["a b", "", "ab", "b"])
    cased.update(["a"], ["a"])
    assert float(cased.compute()) == 60.0


def test_no_line_is_no_match_and_unequal_numbers_are_refused() -> None:
    match = ExactMatch()
    match.update([], [])
    assert float(match.compute()) == 0
    with pytest.raises(ValueError, match="longer"):
        match.update(["a"], ["a", "b"])

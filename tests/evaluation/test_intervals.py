"""Intervals over runs."""

import pytest

from genrec.errors import InputError
from genrec.evaluation.intervals import over_runs


def test_intervals_over_runs_are_those_of_students_t() -> None:
    assert over_runs([0.5]) == {"mean": 0.5, "low": None, "high": None}
    found = over_runs([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["high"] == pytest.approx(2 + 4.302653 / 3**0.5)
    with pytest.raises(InputError, match="no runs"):
        over_runs([])

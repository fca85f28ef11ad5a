"""What a search notes, under a time limit."""

import time

import pytest

from reluctant.errors import Paused
from reluctant.progress import TimeLimit
from reluctant.searches.base import Study
from reluctant.training import Training


def test_a_call_that_cannot_be_broken_off_waits_for_a_slice_long_enough(few_digits, fabric, tmp_path):
    limit = TimeLimit(1e6)
    study = Study(few_digits, "resnet8:width=4", Training(), Training(), 0, fabric, tmp_path, limit)
    assert study.noted("round-0/a", lambda: time.sleep(1.1) or 1) == 1
    assert limit.longest >= 1.1

    def steps():
        for _ in range(3):
            time.sleep(0.5)
            limit("steps", 1, 3)
        return 2

    limit.longest = 1.0
    assert study.noted("round-0/b", steps) == 2
    assert limit.longest == 1.0  # it could have been broken off between its steps
    limit.seconds -= limit.left - 0.9
    with pytest.raises(Paused, match="round-0/c"):
        study.noted("round-0/c", lambda: 3)
    assert study.noted("round-0/a", lambda: 4) == 1

"""A run that cannot fit is refused before it starts, with the figures."""

import pytest

from reluctant.engines import memory
from reluctant.engines.cheetah import Cheetah
from reluctant.errors import EngineError


def test_what_does_not_fit_is_refused(small_program, small_images, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000_000_000)
    monkeypatch.setattr("reluctant.engines.on_spu.run_locally", lambda *a, **k: pytest.fail("it was started"))
    with pytest.raises(EngineError, match=r"cheetah needs .* MB of memory a party .* 1 GB are left for 2 of them"):
        Cheetah().run(small_program, small_images)


def test_what_fits_and_what_nobody_knows_is_not(small_program, monkeypatch):
    for available in (100_000_000_000, None):
        monkeypatch.setattr(memory, "available_memory", lambda available=available: available)
        memory.check_memory("cheetah", small_program, 1, 2)


def test_peak_is_no_less_than_what_is_held():
    held = bytearray(50_000_000)
    assert memory.peak_memory() > len(held)
    assert memory.available_memory() > 0

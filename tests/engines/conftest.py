import numpy as np
import pytest
from small import masked_small

from reluctant.program.lower import lower


@pytest.fixture(scope="session")
def small_program():
    """The small network with 10 % and 25 % of its ReLUs: 26 and 64."""
    return lower(masked_small((0.1, 0.25)))


@pytest.fixture(scope="session")
def small_images():
    """Four random images."""
    return np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)

"""What is proven, what is measured instead, and what is refused."""

import numpy as np
import pytest
from drawn import draw_program

from reluctant.errors import UsageError
from reluctant.program.certificate import certify
from reluctant.program.operations import Linear
from reluctant.program.ops import Program


def chain(*weights):
    """Linear layers of four features one after the other."""
    arrays = {f"w{n}": np.asarray(weight, np.float32) for n, weight in enumerate(weights)}
    names = ["input", *(f"y{n}" for n in range(len(weights)))]
    ops = tuple(Linear(output=names[n + 1], inputs=(names[n],), weight=f"w{n}") for n in range(len(weights)))
    return Program(ops, (4,), (names[-1],), {name: a.shape for name, a in arrays.items()}, (), arrays)


def test_what_is_proven_holds_and_says_its_margin():
    found = certify(chain(np.eye(4)), (-2.0, 2.5), fraction_bits=18)
    assert found.certified
    assert found.worst.output == "y0"
    assert found.margin == pytest.approx(62 - 36 - np.log2(2.5), abs=1e-3)
    assert str(found) == "certified for inputs in [-2.00, 2.50], 24.7 bits of margin"
    found.check()


def test_images_are_measured_where_bounds_prove_nothing():
    """Sums and differences that cancel: a stretch that changes nothing, whose bounds grow twentyfold a layer."""
    mix = np.kron(np.eye(2), [[10.0, 9.9], [-9.9, -9.8]])
    program, image = chain(*[mix] * 8), np.full((3, 4), [1, -1, 1, -1], np.float32)
    alone = certify(program, (-1.0, 1.0), fraction_bits=18)
    assert not alone.certified
    assert "not certified for inputs in [-1.00, 1.00]: the bounds of linear 'y7' are " in str(alone)
    alone.check()  # nothing was shown to overflow
    found = certify(program, (-1.0, 1.0), fraction_bits=18, images=image)
    assert not found.certified
    assert (found.images, found.margin > 20) == (3, True)
    assert str(found) == f"not certified: measured margin of {found.margin:.1f} bits over 3 images"
    found.check()


def test_overflow_is_refused_with_the_operation():
    program = chain(np.eye(4), 2.0**14 * np.eye(4), 2.0**13 * np.eye(4))
    image = np.ones((40, 4), np.float32)
    image[33] = -1.5
    found = certify(program, (-1.5, 1.0), fraction_bits=18, images=image)
    with pytest.raises(UsageError, match=r"overflow the fixed point: linear 'y2' reaches 2\^63\.6 in the ring with 18"):
        found.check()
    certify(program, (-1.5, 1.0), fraction_bits=17, images=image[:2]).check()


def test_too_many_fraction_bits_are_refused():
    program, image = chain(np.eye(4)), np.ones((1, 4), np.float32)
    assert certify(program, (-1.0, 1.0), fraction_bits=30).certified
    with pytest.raises(UsageError, match="with 32 fraction bits"):
        certify(program, (-1.0, 1.0), fraction_bits=32, images=image).check()


@pytest.mark.parametrize("box", [(1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_no_range_at_all(box):
    with pytest.raises(UsageError, match="input range is"):
        certify(draw_program(0), box, fraction_bits=18)

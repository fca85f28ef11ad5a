"""What the parties of CHEETAH send for each kind of work, counted in units that a measured table prices.

Paper: Huang, Lu, Hong, Ding. Cheetah: Lean and Fast Secure Two-Party Deep Neural Network Inference. USENIX Security
2022; products as in Lu et al. BumbleBee, NDSS 2025 (interleaved packing). What is counted here is what SPU 0.9.5 makes
of them in its 64-bit ring, read off its sources and checked by measurement (``reluctant calibrate``):

* A matrix product is cut into tiles that fit into one polynomial each. One side is encrypted and sent, the answers
  are packed together and sent back, so a product costs whole ciphertexts.
* A product element by element works on polynomials of :data:`DEGREE` elements; a short one of two shared values
  takes multiplication triples from a stock, which is filled by such polynomials.
* Comparisons and truncations use oblivious transfers, in one stream for every :data:`STREAM` elements up to the
  processors there are; a stream fetches a stock of transfers when it has run out.

Some units send nothing and only take time (:data:`COMPUTED`), others wait for the link (:data:`CALLS`).
"""

import functools
import math
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: Coefficients of a polynomial.
DEGREE = 8192

#: A comparison or truncation gets a further stream for so many elements.
STREAM = 2048

#: The longest message of a stream of comparisons is split in two after so many elements, and so on.
_IN_ONE_MESSAGE = 1 << 14

#: Products of two shared values with as many elements or more use no triples.
_WITHOUT_TRIPLES = 2 * DEGREE

#: Each prime residue of a product element by element is a product of its own.
_RESIDUES = 4

#: Transfers in the direction that runs out first, and how many a stream has before it fetches its first full stock.
TRANSFERS_A_COMPARISON, _TRANSFERS_A_TRUNCATION, _FIRST_TRANSFERS = 80, 1, 1400

#: Set-up multiplies so many pairs, and makes no fewer comparisons than that (``engines/preparation.py``).
_TRIED_PRODUCTS, TRIED_COMPARISONS = 8, 512

#: How much of each unit some work needs; see the table for what a unit costs.
Work = Counter[str]

#: Calls wait for the link whatever their size is: their streams run side by side.
CALLS = ("product call", "truncation call", "comparison call", "factor call", "transfer call", "result")

#: Units that send nothing: products of polynomials, rotations that pack an answer, elements that are copied into the
#: windows of a convolution or picked by a mask, and what an operation takes however small it is.
COMPUTED = (
    "polynomial product",
    "rotation",
    "lone rotation",
    "unpacked answer",
    "window element",
    "gathered element",
    "product call",
    "truncation call",
    "comparison call",
    "factor call",
    "transfer call",
    "step",
)


@dataclass(frozen=True)
class Tiles:
    """How a matrix product falls into ciphertexts.

    Args:
        sent: ciphertexts of the encrypted side.
        returned: ciphertexts of the answer.
        packed: whether those are packed; if not, they hold the answer's elements and zeros.
        multiplied: products of polynomials.
        unpacked: answers before they are packed.
        rotations: that pack two of them into one.
        lone: rotations that make place in one with no other to put there.
    """

    sent: int
    returned: int
    packed: bool
    multiplied: int
    unpacked: int
    rotations: int
    lone: int


@functools.lru_cache(maxsize=4096)
def tiles(rows: int, inner: int, columns: int) -> Tiles:
    """Return the ciphertexts of the product ``[rows, inner] x [inner, columns]`` of a shared and a private matrix."""
    dims = (rows, inner, columns)
    tile = _cheapest_tile(dims, packed=True)
    blocks = _blocks(dims, tile)
    unpacked = blocks[0] * blocks[2]
    if packed := unpacked > 1:
        interleaved = tile[1] < rows * columns
        leaves = unpacked if interleaved else rows * columns  # else coefficient by coefficient
        places = tile[1] if interleaved else min(DEGREE, 1 << (leaves - 1).bit_length())
        answers = -(-leaves // places)
        trees = [_rotations(min(places, leaves - first), places) for first in range(0, leaves, places)]
        rotations, lone = (sum(counts) for counts in zip(*trees, strict=True))
    else:
        blocks = _blocks(dims, _cheapest_tile(dims, packed=False))
        answers, unpacked, rotations, lone = blocks[0] * blocks[2], 0, 0, 0
    return Tiles(min(blocks[0], blocks[2]) * blocks[1], answers, packed, math.prod(blocks), unpacked, rotations, lone)


def _rotations(ciphertexts: int, places: int) -> tuple[int, int]:
    """Return the rotations of a tree that puts ``ciphertexts`` into ``places``, a power of 2: of pairs, and of one.

    Empty pairs are left out. Rotations of one without a partner are counted apart, because products with many of them
    took longer than the others' prices say; the tables fit about twice a paired rotation.
    """
    every = sum(min(ciphertexts, 1 << level) for level in range(places.bit_length() - 1))
    return ciphertexts - 1, every - (ciphertexts - 1)


def _blocks(dims: tuple[int, int, int], tile: tuple[int, int, int]) -> tuple[int, int, int]:
    first, second, third = (-(-size // part) for size, part in zip(dims, tile, strict=True))
    return first, second, third


def _cheapest_tile(dims: tuple[int, int, int], *, packed: bool) -> tuple[int, int, int]:
    """Return the tile that SPU chooses: the last of those with the lowest of its own estimates.

    A ciphertext counts 1,000 there, a rotation for packing 1, a product of polynomials 1/10.
    """
    rows, inner, columns = dims
    depths = 1 << np.arange(inner.bit_length()) if packed else np.arange(1, inner + 1)
    candidates = np.arange(1, min(DEGREE, rows) + 1)
    fitting = np.searchsorted(depths, DEGREE // candidates, side="right")
    heights = np.repeat(candidates, fitting)
    deep = depths[np.arange(len(heights)) - np.repeat(np.cumsum(fitting) - fitting, fitting)]
    widths = np.minimum(columns, DEGREE // (heights * deep))
    down, along, across = -(-rows // heights), -(-inner // deep), -(-columns // widths)
    ciphertexts = np.minimum(down, across) * along + -(-(down * across) // deep)
    rotations = -(-rows * columns // DEGREE) * deep if packed else 0
    estimates = ciphertexts * 1000.0 + rotations + down * along * across / 10.0
    last = len(estimates) - 1 - int(np.argmin(estimates[::-1]))
    return int(heights[last]), int(deep[last]), int(widths[last])


def streams(elements: int, processors: int) -> list[int]:
    """Return how ``elements`` are shared out to the streams of oblivious transfers."""
    count = min(processors, -(-elements // STREAM))
    share = -(-elements // count)
    return [share] * (count - 1) + [elements - share * (count - 1)]


@dataclass
class Stocks:
    """What one runtime has in stock, from its set-up on; each kind of work takes from it, and says what it needs.

    Args:
        processors: streams that a long tensor falls into.
        capacity: oblivious transfers that a stream fetches at once.
        transfers: those that are left, a stream.
        triples: multiplication triples that are left.
    """

    processors: int
    capacity: int
    transfers: list[int]
    triples: int = 0

    @classmethod
    def after_set_up(cls, processors: int, capacity: int, *, longest: int, largest: int, squares: bool) -> "Stocks":
        """Return the stocks as set-up (``engines/preparation.py``) leaves them.

        Args:
            longest: elements of the largest value.
            largest: comparisons of the step that makes most of them; 0 for a program without any.
            squares: whether the program multiplies shared values.
        """
        stocks = cls(processors, capacity, [_FIRST_TRANSFERS] * processors)
        stocks.truncate(longest)
        if largest:
            stocks.compare(max(largest, TRIED_COMPARISONS))
        if squares:
            stocks.multiply(_TRIED_PRODUCTS)
        return stocks

    def product(self, rows: int, inner: int, columns: int) -> Work:
        """A matrix product with a private matrix, truncated."""
        return _ciphertexts(rows, inner, columns) + self.truncate(rows * columns)

    def shared_product(self, rows: int, inner: int, columns: int) -> Work:
        """A product of two shared matrices, truncated: each party's share of one with the other's of the other."""
        crossed = _ciphertexts(rows, inner, columns)
        return crossed + crossed + self.truncate(rows * columns)

    def truncate(self, elements: int) -> Work:
        """What follows a product of fixed-point numbers, one with a public factor included."""
        shares = streams(elements, self.processors)
        work = Work({"truncation": elements, "truncation stream": len(shares), "truncation call": 1})
        return work + self._transfer(shares, _TRANSFERS_A_TRUNCATION)

    def compare(self, elements: int) -> Work:
        """A maximum of two shared values, or of one and zero."""
        shares = streams(elements, self.processors)
        split = sum((share - 1) // _IN_ONE_MESSAGE for share in shares)
        work = Work({"comparison": elements, "comparison stream": len(shares), "comparison call": 1, "split": split})
        return work + self._transfer(shares, TRANSFERS_A_COMPARISON)

    def _transfer(self, shares: list[int], each: int) -> Work:
        fetched = 0
        for stream, share in enumerate(shares):
            self.transfers[stream] -= each * share
            while self.transfers[stream] < 0:
                self.transfers[stream] += self.capacity
                fetched += 1
        return Work({"transfer stock": fetched, "transfer call": min(fetched, 1)})

    def scale(self, elements: int) -> Work:
        """A product with a private factor for each element, truncated."""
        return _polynomials(elements) + self.truncate(elements)

    def multiply(self, elements: int) -> Work:
        """A product of two shared values, element by element, truncated."""
        if elements >= _WITHOUT_TRIPLES:
            half = elements // 2
            pieces = -(-half // DEGREE) + -(-(elements - half) // DEGREE)
            work = Work({"factor": 2 * _RESIDUES * pieces, "factor answer": _RESIDUES * pieces, "factor call": 1})
        else:
            work = Work({"opened pair": elements, "opening": 1})
            if self.triples < elements:
                work += _polynomials(2 * elements)
                self.triples += -(-2 * elements // DEGREE) * (DEGREE // 2)
            self.triples -= elements
        return work + self.truncate(elements)


def _ciphertexts(rows: int, inner: int, columns: int) -> Work:
    found = tiles(rows, inner, columns)
    work = Work({"encryption": found.sent, "polynomial product": found.multiplied, "product call": 1})
    if found.packed:
        rotated = {"rotation": found.rotations, "lone rotation": found.lone}
        return work + Work({"answer": found.returned, "unpacked answer": found.unpacked, **rotated})
    return work + Work({"sparse answer": found.returned, "sparse coefficient": rows * columns})


def _polynomials(elements: int) -> Work:
    pieces = _RESIDUES * -(-elements // DEGREE)
    return Work({"factor": pieces, "factor answer": pieces, "factor call": 1})


def held_at_most(steps: Iterable[Work]) -> Work:
    """Return the units that decide how much memory a party takes for ``steps``, one after the other.

    Each parallel stream of oblivious transfers holds its buffers from its first use on; comparisons need them in both
    directions. A step's products of polynomials, the answers that are still to be packed, and its comparisons are held
    at once; only the largest count of each decides, since a process does not give memory back.

    Args:
        steps: the work of the set-up, and of each step after it.
    """
    steps = list(steps)
    most = functools.reduce(operator.or_, steps, Work())
    held = Work({unit: most[unit] for unit in ("comparison", "polynomial product", "unpacked answer")})
    streams_used = max(
        (
            -(-step[f"{kind} stream"] // step[f"{kind} call"])
            for step in steps
            for kind in ("truncation", "comparison")
            if step[f"{kind} call"]
        ),
        default=0,
    )
    return held + Work({"process": 1, "stream": streams_used, "both directions": min(most["comparison"], 1)})

"""Matrices and squares on CKKS ciphertexts: how a program is packed, what it needs, and its evaluation by SEAL.

The cryptography is Microsoft SEAL's, through the interface that TenSEAL brings (``tenseal.sealapi``): this file chooses
parameters, lays numbers into slots and says which of SEAL's operations run in which order.

*Packing.* A ciphertext holds a vector of ``width`` values, a power of two, for ``slots / width`` images at once: value
i of image j lies in slot ``i * images + j``. A rotation by ``images`` slots moves all images' vectors by one value,
cyclically, so a batch costs what one image does. A matrix is multiplied by its diagonals (Halevi and Shoup, CRYPTO
2014), those that are zero left out, in baby and giant steps: with ``k = giant * stride + baby``,

    M x = sum over giant of rot(sum over baby of rot(diag_k, -giant * stride) * rot(x, baby), giant * stride).

The babies are made one from the other, the giants by Horner's rule, so that two Galois keys do. A matrix with no more
rows than a giant step, as the last one has, takes babies only, and giants to sum what they made.

*Levels.* Each matrix and each product of ciphertexts takes one prime of the modulus away. A dropped site computes
``c0 + c1 z + c2 z^2 = c0 + c2 z (z + c1 / c2)``: adding a plaintext takes no level, and c2 and c0 go into the matrix
that follows. Where ``c1 / c2`` is too large for that (or c2 is zero) the line goes into that matrix on its own. So k
sites in a row take 2 k + 1 levels.

*Scale.* Numbers are held times ``2 ** SCALE_BITS``; primes have as many bits. A matrix is encoded at the very scale
that brings the sum back to ``2 ** SCALE_BITS`` when it is divided by the prime, so terms from different levels can be
added and nothing drifts.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluctant.errors import EngineError, UnsupportedOperation, UsageError
from reluctant.program.operations import INPUT, Activation, Add, Array, Linear, Reshape
from reluctant.program.ops import Program

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Bits of the scale, of the primes that levels take, and of the first and the last prime: the first one leaves room for
#: values up to 2 ** 19, the last is the special one of key switching.
SCALE_BITS, _END_BITS = 40, 60

#: The most bits of a modulus by ring degree, for 128 bits of security against classical attacks with a ternary secret:
#: Homomorphic Encryption Security Standard (HomomorphicEncryption.org, 2018), table 1. SEAL holds the same and refuses.
MOST_BITS = {8192: 218, 16384: 438, 32768: 881}

#: Where c1 / c2 is larger, an activation's line is computed apart: the product would lose too many bits.
_LARGEST_SHIFT = 1 << 10


def require_tenseal() -> None:
    """Raise unless TenSEAL can be imported.

    Raises:
        UsageError: it is not installed, or cannot be on this Python.
    """
    if sys.version_info >= (3, 12):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UsageError(f"TenSEAL is pinned for Python 3.11, this is {version}; run the engine ckks there")
    if importlib.util.find_spec("tenseal") is None:
        raise UsageError('TenSEAL is not installed; the engine ckks needs it: pip install "reluctant[fhe]"')


@dataclass(frozen=True)
class Parameters:
    """What both parties must know of the encryption; nothing in it is secret.

    Args:
        ring: degree of the polynomials; there are half as many slots.
        levels: products one after the other that ciphertexts can take.
        width: slots that one image takes, a power of two.

    Raises:
        UsageError: they contradict each other, or are not secure.
    """

    ring: int
    levels: int
    width: int

    def __post_init__(self) -> None:
        if self.ring not in MOST_BITS or self.bits > MOST_BITS[self.ring] or self.levels < 1:
            raise UsageError(f"CKKS with ring degree {self.ring} and {self.bits} bits of modulus is not 128-bit secure")
        if not 2 <= self.width <= self.ring // 2 or self.width & (self.width - 1):
            raise UsageError(f"CKKS vectors of width {self.width} do not fit {self.ring // 2:,} slots")

    @classmethod
    def smallest(cls, levels: int, width: int) -> "Parameters":
        """Return those of the smallest ring that holds so many levels and vectors of ``width`` values.

        Raises:
            UnsupportedOperation: there is none.
        """
        if 2 * width > (largest := max(MOST_BITS)):
            raise UnsupportedOperation(
                f"the network has {width:,} values at a place; CKKS has at most {largest // 2:,} slots: take a "
                "narrower network or smaller images"
            )
        power = max(2, 1 << (width - 1).bit_length())
        for ring, most in MOST_BITS.items():
            if _bits(levels) <= most and 2 * power <= ring:
                return cls(ring, levels, power)
        deepest = (MOST_BITS[largest] - _bits(0)) // SCALE_BITS
        raise UnsupportedOperation(
            f"the network takes {levels} levels, CKKS has at most {deepest} here without bootstrapping, two a site "
            "with squares: take a shallower network, or identities at some sites"
        )

    @property
    def bits(self) -> int:
        """Bits of the whole modulus, the special prime included."""
        return _bits(self.levels)

    @property
    def primes(self) -> list[int]:
        """Bits of each prime of the modulus."""
        return [_END_BITS, *[SCALE_BITS] * self.levels, _END_BITS]

    @property
    def images(self) -> int:
        """Images in one ciphertext."""
        return self.ring // 2 // self.width

    @property
    def stride(self) -> int:
        """Diagonals from one giant step to the next."""
        return 1 << self.width.bit_length() // 2

    @property
    def steps(self) -> tuple[int, int]:
        """Slots of a baby and of a giant step."""
        return self.images, self.images * self.stride

    @property
    def elements(self) -> list[int]:
        """The Galois elements of the steps."""
        return [pow(3, step, 2 * self.ring) for step in self.steps]


def _bits(levels: int) -> int:
    return 2 * _END_BITS + SCALE_BITS * levels


@dataclass(frozen=True, eq=False)
class Layer:
    """A sum of matrices, and a product that follows it.

    Args:
        name: of what it makes.
        site: the activation that follows; empty at an output.
        terms: names of what it reads, each with its matrix.
        offset: added to the sum.
        shift: the layer makes ``z (z + shift)`` of its sum z; ``None`` at an output.
    """

    name: str
    site: str
    terms: tuple[tuple[str, Matrix], ...]
    offset: Vector
    shift: Vector | None

    @property
    def line(self) -> str:
        """The name of z itself, which a later layer may read, too."""
        return f"{self.name}.line"


#: A value as a sum of matrices (or, where it is what a layer made, of factors) times what layers made, and a constant.
_Sum = tuple[tuple[tuple[str, Matrix], ...], Vector]


def layers(program: Program) -> list[Layer]:
    """Return the layers of a program that is straight (:func:`reluctant.program.collapse.straighten`).

    Raises:
        UnsupportedOperation: it keeps a ReLU, or has max-pooling.
    """
    check_polynomial(program)
    assert program.arrays is not None
    arrays = {name: array.astype(np.float64) for name, array in program.arrays.items()}
    made: list[Layer] = []
    size = math.prod(program.input_shape)
    sums: dict[str, _Sum] = {INPUT: (((INPUT, np.ones(size)),), np.zeros(size))}
    for op in program.ops:
        before = [sums[name] for name in op.inputs]
        if isinstance(op, Activation):
            layer, sums[op.output] = _activation(op, *before[0], arrays)
            made.append(layer)
        elif isinstance(op, Linear):
            (terms, constant), weight = before[0], arrays[op.weight]
            bias = 0.0 if op.bias is None else arrays[op.bias]
            sums[op.output] = tuple((name, weight * factors) for name, factors in terms), weight @ constant + bias
        elif isinstance(op, Add):
            sums[op.output] = before[0][0] + before[1][0], before[0][1] + before[1][1]
        elif isinstance(op, Reshape):
            sums[op.output] = before[0]
        else:
            raise UnsupportedOperation(f"{op.kind} {op.output!r} is left in a program that should be matrices only")
    return made + [Layer(name, "", *sums[name], None) for name in program.outputs]


def _activation(op: Activation, terms: Any, offset: Vector, arrays: Mapping[str, Vector]) -> tuple[Layer, _Sum]:
    """Return the layer that ends in ``op``, and the output of ``op`` as a sum of what that layer makes."""
    size = len(op.keep)
    c0, c1, c2 = (None if name is None else arrays[name] for name in (op.c0, op.c1, op.c2))
    slope = np.full(size, 1.0 if op.unit_slope else 0.0) if c1 is None else c1
    assert c2 is not None
    inside = np.abs(slope) <= _LARGEST_SHIFT * np.abs(c2)
    shift = np.divide(slope, c2, out=np.zeros(size), where=inside & (c2 != 0))
    layer = Layer(op.output, op.site, terms, offset, shift)
    line = np.where(inside, 0.0, slope)
    read = [(layer.name, c2)] + ([(layer.line, line)] if line.any() else [])
    return layer, (tuple(read), np.zeros(size) if c0 is None else c0)


def check_polynomial(program: Program) -> None:
    """Raise unless ``program`` is a polynomial.

    Raises:
        UnsupportedOperation: the first site that is none is named.
    """
    for op in program.ops:
        if isinstance(op, Activation) and len(op.kept):
            raise UnsupportedOperation(
                f"site {op.site} keeps {len(op.kept):,} ReLUs; CKKS evaluates polynomials only: linearize with "
                "--budget 0 --set method.surrogate=hermite"
            )
        if op.kind == "maxpool":
            raise UnsupportedOperation(
                f"{op.output!r} is max-pooling; CKKS evaluates polynomials only: average instead"
            )


def parameters_of(found: Sequence[Layer]) -> Parameters:
    """Return what the layers need.

    Raises:
        UnsupportedOperation: more than there is.
    """
    level = {INPUT: 0}
    width = 1
    for layer in found:
        level[layer.line] = 1 + max(level[name] for name, _ in layer.terms)
        level[layer.name] = level[layer.line] + (layer.shift is not None)
        width = max(width, *(side for _, matrix in layer.terms for side in matrix.shape))
    return Parameters.smallest(max(level.values()), width)


def diagonals(matrix: Matrix, width: int) -> dict[int, Vector]:
    """Return the diagonals of ``matrix`` that are not all zeros, padded to ``width``: ``[k][i] = matrix[i, i + k]``."""
    rows, columns = np.nonzero(matrix)
    found: dict[int, Vector] = {}
    numbers = (columns - rows) % width
    for k in np.unique(numbers):
        found[int(k)] = np.zeros(width)
        found[int(k)][rows[numbers == k]] = matrix[rows[numbers == k], columns[numbers == k]]
    return found


def _stacked(matrix: Matrix, width: int, rows: int) -> Matrix:
    """Return a matrix of ``width`` rows with ``rows`` diagonals, whose parts of ``rows`` rows sum up to ``matrix``.

    ``[i, i + k]`` of it is ``matrix[i % rows, i + k]``, for k under ``rows`` and columns counted modulo ``width``.
    """
    padded = np.zeros((rows, width))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    i, k = np.arange(width)[:, None], np.arange(rows)
    stacked = np.zeros((width, width))
    stacked[i, (i + k) % width] = padded[i % rows, (i + k) % width]
    return stacked


class Scheme:
    """SEAL's context for ``parameters``, and what both parties do with it.

    Raises:
        EngineError: SEAL finds them not secure.
    """

    def __init__(self, parameters: Parameters) -> None:
        from tenseal import sealapi as seal

        self.seal, self.parameters, self.scale = seal, parameters, 2.0**SCALE_BITS
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.ring)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.ring, parameters.primes))
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise EngineError(f"SEAL refuses the parameters: {self.context.parameters_error_message()}")
        self.encoder = seal.CKKSEncoder(self.context)

    def encode(self, vector: Vector, parms: Any, scale: float) -> Any:
        """Return a plaintext that has each number of ``vector`` once an image; zeros follow it."""
        padded = np.zeros(self.parameters.width)
        padded[: len(vector)] = vector
        return self.encode_slots(np.repeat(padded, self.parameters.images), parms, scale)

    def encode_slots(self, slots: Vector, parms: Any, scale: float) -> Any:
        """Return a plaintext of all ``slots``."""
        plain = self.seal.Plaintext()
        self.encoder.encode(slots.tolist(), parms, scale, plain)
        return plain

    def load(self, kind: str, path: Path) -> Any:
        """Return the object of SEAL's class ``kind`` in ``path``, which SEAL checks against the context.

        Raises:
            EngineError: it holds none: damaged, of other parameters, or of another kind, such as a secret key.
        """
        loaded = getattr(self.seal, kind)()
        try:
            loaded.load(self.context, str(path))
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"what should be {kind} of these parameters is none: {error}") from error
        return loaded


class KeyHolder:
    """The client's side: makes the keys, encrypts, decrypts. The secret key is in SEAL's memory and goes nowhere."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._generator = scheme.seal.KeyGenerator(scheme.context)
        secret = self._generator.secret_key()
        self._encryptor = scheme.seal.Encryptor(scheme.context, secret)
        self._decryptor = scheme.seal.Decryptor(scheme.context, secret)

    def save_evaluation_keys(self, relinearisation: Path, galois: Path) -> None:
        """Write the two keys by which the server computes; they are public."""
        self._generator.create_relin_keys().save(str(relinearisation))
        self._generator.create_galois_keys(self.scheme.parameters.elements).save(str(galois))

    def encrypt(self, images: Array, path: Path) -> None:
        """Write the ciphertext of ``images [B, ...]``."""
        parameters, scheme = self.scheme.parameters, self.scheme
        slots = np.zeros((parameters.width, parameters.images))
        flat = images.reshape(len(images), -1)
        slots[: flat.shape[1], : len(images)] = flat.T
        plain = scheme.encode_slots(slots.reshape(-1), scheme.context.first_parms_id(), scheme.scale)
        self._encryptor.encrypt_symmetric(plain).save(str(path))

    def decrypt(self, path: Path, size: int, images: int) -> Array:
        """Return the first ``size`` values of each of ``images`` images, float32 ``[images, size]``."""
        plain = self.scheme.seal.Plaintext()
        self._decryptor.decrypt(self.scheme.load("Ciphertext", path), plain)
        slots = np.asarray(self.scheme.encoder.decode_double(plain)).reshape(self.scheme.parameters.width, -1)
        return np.ascontiguousarray(slots[:size, :images].T, np.float32)


class Evaluator:
    """The server's side: computes on ciphertexts with public keys.

    Args:
        relinearisation, galois: files of the client's evaluation keys.

    Raises:
        EngineError: a file holds something else, such as a secret key, or keys for other rotations.

    Attributes:
        seconds: that the products of each site have taken so far.
    """

    def __init__(self, scheme: Scheme, relinearisation: Path, galois: Path) -> None:
        self.scheme = scheme
        self.seconds: dict[str, float] = {}
        self._relinearisation = scheme.load("RelinKeys", relinearisation)
        self._galois = scheme.load("GaloisKeys", galois)
        missing = [element for element in scheme.parameters.elements if not self._galois.has_key(element)]
        if missing or not self._relinearisation.has_key(2):
            raise EngineError("the client's keys are not those that the rotations and products need")
        self._seal = scheme.seal.Evaluator(scheme.context)

    def run(self, found: Sequence[Layer], ciphertext: Path) -> Iterator[tuple[Layer, Any]]:
        """Yield each layer once it is computed, with the ciphertext that it made."""
        values = {INPUT: self.scheme.load("Ciphertext", ciphertext)}
        for layer in found:
            made = self._sum(layer, values)
            values[layer.line] = made
            if layer.shift is None:
                made = self._at(made, self.scheme.context.last_parms_id())  # the smallest there is
            else:
                begun = time.perf_counter()
                made = values[layer.name] = self._product(made, layer.shift)
                self.seconds[layer.site] = self.seconds.get(layer.site, 0.0) + time.perf_counter() - begun
            yield layer, made

    def _sum(self, layer: Layer, values: Mapping[str, Any]) -> Any:
        """Return the layer's matrices times what they read, plus its offset, at the usual scale."""
        seal, scheme = self._seal, self.scheme
        lowest = min((values[name] for name, _ in layer.terms), key=lambda value: int(value.coeff_modulus_size()))
        parms, total = lowest.parms_id(), None
        for name, matrix in layer.terms:
            term = self._times(matrix, self._at(values[name], parms))
            if total is None:
                total = term
            elif term is not None:
                term.scale = total.scale
                seal.add_inplace(total, term)
        if total is None:
            raise EngineError(f"the matrices before {layer.name!r} are all zeros; nothing is left of the network")
        seal.rescale_to_next_inplace(total)
        total.scale = scheme.scale
        seal.add_plain_inplace(total, scheme.encode(layer.offset, total.parms_id(), total.scale))
        return total

    def _at(self, value: Any, parms: Any) -> Any:
        """Return ``value`` with the modulus of ``parms``, which is no larger than its own."""
        lowered = self.scheme.seal.Ciphertext()
        self._seal.mod_switch_to(value, parms, lowered)
        return lowered

    def _product(self, z: Any, shift: Vector) -> Any:
        """Return ``z (z + shift)``; its scale is that of ``z``, squared and divided by a prime."""
        seal = self._seal
        shifted, product = self.scheme.seal.Ciphertext(), self.scheme.seal.Ciphertext()
        seal.add_plain(z, self.scheme.encode(shift, z.parms_id(), z.scale), shifted)
        seal.multiply(z, shifted, product)
        seal.relinearize_inplace(product, self._relinearisation)
        seal.rescale_to_next_inplace(product)
        return product

    def _times(self, matrix: Matrix, x: Any) -> Any | None:
        """Return ``matrix`` times ``x``, not yet rescaled: the scale is such that rescaling gives the usual one."""
        parameters = self.scheme.parameters
        stride, (baby_step, giant_step) = parameters.stride, parameters.steps
        short = len(matrix) <= stride
        found = diagonals(_stacked(matrix, parameters.width, stride) if short else matrix, parameters.width)
        babies = [x]
        for _ in range(max((k % stride for k in found), default=0)):
            babies.append(self._rotated(babies[-1], baby_step))
        prime = self.scheme.context.get_context_data(x.parms_id()).parms().coeff_modulus()[-1].value()
        scale, total = self.scheme.scale * prime / x.scale, None
        for giant in range(max(found, default=-1) // stride, -1, -1):
            total = None if total is None else self._rotated(total, giant_step)
            for k in range(giant * stride, (giant + 1) * stride):
                if k in found:
                    plain = self.scheme.encode(np.roll(found[k], giant * stride), x.parms_id(), scale)
                    total = self._added(total, babies[k % stride], plain)
        return self._summed(total) if short and total is not None else total

    def _summed(self, parts: Any) -> Any:
        """Return in every slot the sum of what ``parts`` has there and any number of giant steps away."""
        total = parts
        for _ in range(self.scheme.parameters.width // self.scheme.parameters.stride - 1):
            parts = self._rotated(parts, self.scheme.parameters.steps[1])
            summed = self.scheme.seal.Ciphertext()
            self._seal.add(total, parts, summed)
            total = summed
        return total

    def _rotated(self, x: Any, step: int) -> Any:
        rotated = self.scheme.seal.Ciphertext()
        self._seal.rotate_vector(x, step, self._galois, rotated)
        return rotated

    def _added(self, total: Any | None, x: Any, plain: Any) -> Any:
        """Return ``total`` plus ``x`` times ``plain``; SEAL refuses to multiply by zero, which would add nothing."""
        if plain.is_zero():
            return total
        term = self.scheme.seal.Ciphertext()
        self._seal.multiply_plain(x, plain, term)
        if total is None:
            return term
        self._seal.add_inplace(total, term)
        return total

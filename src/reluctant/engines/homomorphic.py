"""Keys, encryption and evaluation under CKKS.

The cryptography is Microsoft SEAL's, through the interface that TenSEAL brings (``tenseal.sealapi``). This file says
which of SEAL's operations run in which order; how numbers lie in ciphertexts, in
:mod:`reluctant.engines.packing`.
"""

import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.costs.ckks import SCALE_BITS
from reluctant.engines.packing import Layer, Matrix, Parameters, Vector, diagonals, stacked
from reluctant.errors import EngineError, UsageError
from reluctant.program.operations import INPUT, Array


def require_tenseal() -> None:
    """Raise unless TenSEAL can be imported.

    Raises:
        UsageError: it is not installed, or cannot be on this Python.
    """
    if sys.version_info >= (3, 12):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UsageError(f"TenSEAL is held to Python 3.11 here, this is {version}; run the engine ckks there")
    if importlib.util.find_spec("tenseal") is None:
        raise UsageError('TenSEAL is not installed; the engine ckks needs it: pip install "reluctant[fhe]"')


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


def save(made: Any, path: Path) -> None:
    """Write SEAL's object ``made`` to ``path``.

    Raises:
        OSError: the disk takes no more.
    """
    try:
        made.save(str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from error


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
        save(self._generator.create_relin_keys(), relinearisation)
        save(self._generator.create_galois_keys(self.scheme.parameters.elements), galois)

    def encrypt(self, images: Array, path: Path) -> None:
        """Write the ciphertext of ``images [B, ...]``."""
        parameters, scheme = self.scheme.parameters, self.scheme
        slots = np.zeros((parameters.width, parameters.images))
        flat = images.reshape(len(images), -1)
        slots[: flat.shape[1], : len(images)] = flat.T
        plain = scheme.encode_slots(slots.reshape(-1), scheme.context.first_parms_id(), scheme.scale)
        save(self._encryptor.encrypt_symmetric(plain), path)

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
        found = diagonals(stacked(matrix, parameters.width, stride) if short else matrix, parameters.width)
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

"""DELPHI: garbled circuits for ReLUs, homomorphic encryption for layers, nearly all of it before the image comes.

Paper:   Mishra, Lehmkuhl, Srinivasan, Zheng, Popa. DELPHI: A Cryptographic Inference Service for Neural Networks.
         USENIX Security 2020.
Numbers: measured with DELPHI's code (the server garbles) for Garimella, Ghodsi, Jha, Garg, Reagen. Characterizing and
         Optimizing End-to-End Systems for Private Inference. ASPLOS 2023, and published with its artifact; both
         parties on one AMD EPYC 7502, layers on one thread. Figures a ReLU, a multiply-accumulate and a ciphertext are
         computed from them. How many ciphertexts a layer takes is computed from the code; that gives the measured
         traffic of ResNet-18 and ResNet-32, on 32x32 and 64x64 images, to the megabyte.
Ours:    a ciphertext that is not full takes as long as a full one: with that, ResNet-32 on 32x32 images has 39 s of HE,
         where 29 s would be predicted and 39 to 41 s were measured. Squares (Beaver's pairs), private slopes (as
         layers), layers with other kernels than 3x3, and vectors, priced as the smallest map that was measured.
"""

import math
from dataclasses import dataclass

import numpy as np

from reluctant.costs.model import UNKNOWN, Cost, Spent, total
from reluctant.costs.profile import Layer, Profile, slopes

#: Slots of a ciphertext, and its bytes; the public keys, which are sent once.
SLOTS, CIPHERTEXT_BYTES, KEY_BYTES = 8192, 524_393, 33.2e6

#: Seconds in which the client encrypts and decrypts a ciphertext: 2.8 s and 0.17 s for ResNet-18 on 32x32 images.
ENCRYPTION_SECONDS, DECRYPTION_SECONDS = 0.0046, 0.0018

#: Microseconds a multiply-accumulate takes under encryption, by the side of the map that is read. A layer with a stride
#: is computed at all pixels. 4 to 32: CIFAR networks; 64: those for Tiny-ImageNet.
MAC_MICROSECONDS = {4: 0.454, 8: 0.419, 16: 0.386, 32: 0.356, 64: 0.330}

#: Bytes a ReLU sends before the image comes: circuit and garbler's labels down; oblivious transfer, up and down.
CIRCUIT_BYTES, TRANSFER_BYTES = 15_896 + 1_176, 672 + 1_344

#: Bytes a ReLU sends once it is there: labels to the client. A masked element on its way back has 8 to 9.
LABEL_BYTES, ELEMENT_BYTES = 1_184, 9

#: Seconds a ReLU takes to garble and to encode offline, to evaluate and to encode online.
GARBLING_SECONDS, EVALUATION_SECONDS = 30.5e-6 + 7.6e-6, 18.3e-6 + 3.4e-6


def and_gates(bits: int = 42, fraction_bits: int = 10) -> int:
    """Return the AND gates of DELPHI's ReLU6 on shares of so many bits, counted in its code."""
    return 3 * (bits - 1) + 4 * bits + (fraction_bits + 8) + (fraction_bits + 9)


@dataclass(frozen=True)
class Delphi(Profile):
    """Prices programs under DELPHI, its preparation of every image included and apart."""

    engine = "delphi"
    source = (
        "figures of DELPHI's code in the artifact of Garimella et al., ASPLOS 2023 (one EPYC 7502, HE on one thread)"
    )
    omitted: tuple[str, ...] = ("layers on shares once the image is there (0.3 to 0.7 s measured)", "making the keys")

    def relus(self, count: int) -> Spent:
        """See :meth:`Profile.relus`. A round trip brings labels to the client and the masked results back."""
        return Spent(
            online=Cost(count * (LABEL_BYTES + ELEMENT_BYTES), seconds=count * EVALUATION_SECONDS, trips=1),
            offline=Cost(count * (CIRCUIT_BYTES + TRANSFER_BYTES), seconds=count * GARBLING_SECONDS),
        )

    def linear(self, layer: Layer) -> Spent:
        """See :meth:`Profile.linear`: the client encrypts its mask, shifted to each place of the kernel.

        Of a layer with a stride, each pixel of a block comes back in a ciphertext of its own.
        """
        sent = layer.places * -(-layer.inputs // SLOTS)
        returned = layer.stride * -(-layer.outputs // SLOTS)
        return Spent(offline=total((ciphertexts(sent, returned), Cost(seconds=evaluation_seconds(layer)))))

    def squares(self, count: int) -> Spent:
        """See :meth:`Profile.squares`: a pair (a, a^2) made like a layer, then a masked element each way."""
        opened = Cost(count * 2 * ELEMENT_BYTES, trips=1)
        return Spent(opened, self.linear(slopes(count)).offline)

    def ends(self, elements: int) -> Spent:
        """See :meth:`Profile.ends`: masked elements up at the start and down at the end."""
        return Spent(Cost(elements * ELEMENT_BYTES, trips=1))

    def once(self) -> Cost:
        """See :meth:`Profile.once`: public keys."""
        return Cost(KEY_BYTES, UNKNOWN, UNKNOWN)


def ciphertexts(sent: int, returned: int) -> Cost:
    """Return what so many ciphertexts take that the client encrypts and that it gets back, without what is computed."""
    seconds = sent * ENCRYPTION_SECONDS + returned * DECRYPTION_SECONDS
    return Cost((sent + returned) * CIPHERTEXT_BYTES, seconds=seconds)


def evaluation_seconds(layer: Layer) -> float:
    """Return how long the server computes on ciphertexts for ``layer``, on one thread."""
    sides = np.log2(list(MAC_MICROSECONDS))
    each = float(np.interp(math.log2(layer.side), sides, list(MAC_MICROSECONDS.values())))
    filled = layer.inputs / (SLOTS * -(-layer.inputs // SLOTS))
    return layer.macs / filled * each * 1e-6

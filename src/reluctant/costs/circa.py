"""Circa: of a ReLU, only a sign test by chance and without the low bits is in a garbled circuit.

Paper:   Ghodsi, Jha, Reagen, Garg. Circa: Stochastic ReLUs for Private Deep Learning. NeurIPS 2021, arXiv:2106.08475.
Numbers: a reconstruction. The paper's abstract alone could be read, and there is no code. The circuit is counted (2n -
         k AND gates for n bits without the lowest k); bytes and seconds are scaled from those of DELPHI's circuit: 48
         bytes a gate and 152 more, labels of 28 bytes, oblivious transfer as there. That gives circuits 4.8 times
         smaller than DELPHI's and ReLUs 3 times faster, where the abstract says up to 4.7 and up to 3.
Ours:    Beaver's triple of each ReLU, made in stock: factors up and products back, 8,192 in a ciphertext, two private
         multiplications each. Layers are DELPHI's.
"""

from dataclasses import dataclass

from reluctant.costs.delphi import (
    ELEMENT_BYTES,
    GARBLING_SECONDS,
    SLOTS,
    Delphi,
    and_gates,
    ciphertexts,
    evaluation_seconds,
)
from reluctant.costs.model import Cost, Spent, total
from reluctant.costs.profile import slopes

#: Bytes of a label as DELPHI sends it, and of an element that is opened.
LABEL_BYTES, OPENED_BYTES = 28, 8

#: Bytes of oblivious transfer for each bit that is compared, up and down.
TRANSFER_BYTES = 16 + 32

#: Bytes of two ciphertexts an AND gate (half-gates), and of what is around a circuit.
GATE_BYTES, FRAME_BYTES = 48, 152

#: Seconds a ReLU takes to encode and evaluate, and to multiply: 5 to 7 microseconds, by its gates.
EVALUATION_SECONDS = 7e-6


@dataclass(frozen=True)
class Circa(Delphi):
    """Prices programs under Circa. What its faults do to the answers is another matter, and not known here.

    Args:
        bits: of a share: one more than those of the prime.
        truncated: lowest bits that the sign test leaves out.
    """

    bits: int = 32  # a prime of 31 bits, as we recall it of the paper
    truncated: int = 12

    engine = "circa"
    source = "a reconstruction: gates of its sign test, priced as in the artifact of Garimella et al., ASPLOS 2023"
    omitted = (*Delphi.omitted, "what its faults do to the answers")

    @property
    def gates(self) -> int:
        """AND gates of a sign test."""
        return 2 * self.bits - self.truncated

    @property
    def circuit_bytes(self) -> int:
        """Bytes of a circuit with the garbler's labels."""
        return GATE_BYTES * self.gates + FRAME_BYTES + LABEL_BYTES * self.bits

    def relus(self, count: int) -> Spent:
        """See :meth:`Profile.relus`. Two round trips: the sign as in DELPHI, then a product."""
        compared = self.bits - self.truncated
        sent = self.circuit_bytes + TRANSFER_BYTES * compared
        stock = total((ciphertexts(2, 1), Cost(seconds=2 * evaluation_seconds(slopes(SLOTS)))))
        garbling = GARBLING_SECONDS * self.gates / and_gates()
        labels = LABEL_BYTES * compared + OPENED_BYTES
        return Spent(
            online=Cost(
                count * (labels + ELEMENT_BYTES + 2 * OPENED_BYTES), seconds=count * EVALUATION_SECONDS, trips=2
            ),
            offline=Cost(count * (sent + stock.bytes / SLOTS), seconds=count * (garbling + stock.seconds / SLOTS)),
        )

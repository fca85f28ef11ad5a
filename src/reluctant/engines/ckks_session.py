"""What two parties say to each other around encrypted inference: keys and ciphertexts there, ciphertexts back.

JSON for what is agreed on, SEAL's own serialisation for the rest; no pickle. Each side checks what it is told: the
client chooses no parameters, but refuses those that are not secure; SEAL checks every key and ciphertext against them;
at the end what each side counted as sent must be what the other counted as received. The party imports no torch.
"""

import math
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reluctant.costs.ckks import SCALE_BITS
from reluctant.engines.base import EngineRun, Images, Outputs, SiteCost, check_images
from reluctant.engines.homomorphic import Evaluator, KeyHolder, Scheme, save
from reluctant.engines.meeting import open_link
from reluctant.engines.memory import peak_memory
from reluctant.engines.packing import Parameters, layers, parameters_of
from reluctant.engines.party import Order, Voice, read_images, read_program
from reluctant.engines.session import Talk
from reluctant.engines.settings import CLIENT, SERVER
from reluctant.engines.spu import Traffic, batches
from reluctant.errors import EngineError, ReluctantError, UsageError
from reluctant.program.operations import LARGEST, Shape
from reluctant.program.ops import Program

_MOST_IMAGES = 1 << 20

#: No message is larger: a bound on what the other party can make us allocate.
_LARGEST_MESSAGE = 1 << 30


def images_together(parameters: Parameters, images: int, batch: int | None) -> int:
    """Return how many of ``images`` go into one ciphertext: ``batch``, or as many as fit.

    Raises:
        UsageError: ``batch`` is more than fit.
    """
    if batch is not None and batch > parameters.images:
        raise UsageError(f"batch is {batch}; {parameters.images} images of this network fit into a ciphertext")
    return min(images, batch or parameters.images)


class Link:
    """Messages to and from the other party over one TCP connection, each behind its length in eight bytes.

    Attributes:
        traffic: all that crossed, lengths included.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.traffic = Traffic()

    def send(self, rank: int, message: bytes | str) -> None:
        """Send a message; there is only one to send it to, so ``rank`` does not matter."""
        data = message.encode() if isinstance(message, str) else message
        with _as_lost():
            self._connection.sendall(len(data).to_bytes(8, "big") + data)
        self.traffic += Traffic(sent=8 + len(data), messages_sent=1)

    def recv(self, rank: int) -> bytes:
        """Return the next message.

        Raises:
            EngineError: it is larger than any can be.
            RuntimeError: the other party is gone; so SPU's link says it, too.
        """
        length = int.from_bytes(self._exactly(8), "big")
        if length > _LARGEST_MESSAGE:
            raise EngineError(f"the other party announces a message of {length:,} bytes; is it the same version?")
        data = self._exactly(length)
        self.traffic += Traffic(received=8 + length, messages_received=1)
        return data

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            with _as_lost():
                got = self._connection.recv_into(view)
            if not got:
                raise RuntimeError("the link was closed")
            view = view[got:]
        return bytes(data)


@contextmanager
def _as_lost() -> Iterator[None]:
    """Tell what is wrong with the connection from what is wrong with a disk, which are both ``OSError``."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"the link is lost: {error.strerror or error}") from error


def take_part(folder: Path, order: Order, voice: Voice) -> EngineRun:
    """Be the party of ``order``, with what it finds in ``folder``; SEAL's files go there and on from there."""
    begun = time.perf_counter()
    link = Link(open_link(order.role, order.listen, order.peers, order.link_seconds))
    if order.role == "server":
        return _serve(link, read_program(folder), folder, voice, begun)
    return _query(link, read_images(folder), order.batch, folder, voice, begun)


def _serve(link: Link, program: Program, folder: Path, voice: Voice, begun: float) -> EngineRun:
    """Be the server: give the network's answers under encryption, learn nothing. Returns the cost; no outputs."""
    talk, found = Talk(link, SERVER, leave=voice.leave), layers(program)
    parameters = parameters_of(found)
    shapes = [program.shapes[name] for name in program.outputs]
    chosen = {"ring": parameters.ring, "levels": parameters.levels, "width": parameters.width}
    talk.send({"ckks": chosen, "input_shape": program.input_shape, "outputs": shapes})
    wish = talk.receive(CLIENT, images=int, batch=int)
    images, batch = wish["images"], wish["batch"]
    voice.progress("set up", 0, 1)
    try:
        if not (1 <= images <= _MOST_IMAGES and 1 <= batch <= parameters.images):
            raise EngineError(
                f"the client asks for {images} images in batches of {batch}: expected 1 or more, and to fit"
            )
        evaluator = Evaluator(Scheme(parameters), *(_receive(link, folder / key) for key in ("relin", "galois")))
    except EngineError as error:
        talk.refuse(error)
        raise
    talk.send({"ready": True})
    setup, setup_seconds = link.traffic, time.perf_counter() - begun
    begun = time.perf_counter()
    for part in batches(images, batch):
        voice.progress("run", part.start, images)
        for layer, made in evaluator.run(found, _receive(link, folder / "ciphertext")):
            if layer.shift is None:
                save(made, folder / "answer")
                link.send(CLIENT, (folder / "answer").read_bytes())
    voice.progress("run", images, images)
    by_site = tuple(SiteCost(site.name, 0, 0, 0, 0, 0, evaluator.seconds.get(site.name, 0.0)) for site in program.sites)
    nothing = [np.zeros((0, *shape), np.float32) for shape in shapes]
    return _result(link, talk, nothing, (images, batch), (setup, setup_seconds), begun, by_site)


def _query(link: Link, images: Images, batch: int | None, folder: Path, voice: Voice, begun: float) -> EngineRun:
    """Be the client: give encrypted images, learn the outputs.

    Raises:
        ShapeError: the server's network takes other images.
        UsageError: a batch that does not fit, or parameters that are not secure.
    """
    talk = Talk(link, CLIENT, leave=voice.leave)
    try:
        parameters, shape, outputs = _read_offer(talk.receive(SERVER, ckks=dict, input_shape=list, outputs=list))
        images = check_images(shape, images, 1 if batch is None else batch)
        batch = images_together(parameters, len(images), batch)
        scheme = Scheme(parameters)
    except ReluctantError as error:
        talk.refuse(error)
        raise
    talk.send({"images": len(images), "batch": batch})
    voice.progress("set up", 0, len(images))
    holder = KeyHolder(scheme)
    keys = [folder / "relin", folder / "galois"]
    holder.save_evaluation_keys(*keys)
    for key in keys:
        link.send(SERVER, key.read_bytes())
    talk.receive(SERVER, ready=bool)
    setup, setup_seconds = link.traffic, time.perf_counter() - begun
    begun, found = time.perf_counter(), []
    for part in batches(len(images), batch):
        voice.progress("run", part.start, len(images))
        holder.encrypt(images[part], folder / "ciphertext")
        link.send(SERVER, (folder / "ciphertext").read_bytes())
        count = part.stop - part.start
        answers = [holder.decrypt(_receive(link, folder / "answer"), math.prod(output), count) for output in outputs]
        found.append([answer.reshape(count, *output) for answer, output in zip(answers, outputs, strict=True)])
    voice.progress("run", len(images), len(images))
    whole = [np.concatenate(values) for values in zip(*found, strict=True)]
    return _result(link, talk, whole, (len(images), batch), (setup, setup_seconds), begun, ())


def _receive(link: Link, path: Path) -> Path:
    """Return ``path``, which holds the next message."""
    path.write_bytes(link.recv(0))
    return path


def _read_offer(message: dict[str, Any]) -> tuple[Parameters, Shape, list[Shape]]:
    """Return what the server says of itself: parameters, the shapes of an image and of its outputs.

    Raises:
        UsageError: it contradicts itself.
    """
    numbers = [message["ckks"].get(key) for key in ("ring", "levels", "width")]
    shapes = [message["input_shape"], *message["outputs"]]
    if not all(isinstance(shape, list) and shape for shape in shapes) or not message["outputs"]:
        raise UsageError("the server names no shape of an image or of an output; is it the same version?")
    for number in (*numbers, *(size for shape in shapes for size in shape)):
        if type(number) is not int or not 0 < number <= LARGEST:
            raise UsageError(f"the server sent {str(number)[:40]} for a size or a parameter of its network")
    parameters = Parameters(*numbers)
    if max(math.prod(shape) for shape in shapes) > parameters.width:
        raise UsageError(f"the server's images and outputs do not fit its vectors of width {parameters.width}")
    return parameters, tuple(shapes[0]), [tuple(shape) for shape in shapes[1:]]


def _result(
    link: Link,
    talk: Talk,
    outputs: Sequence[Outputs],
    size: tuple[int, int],
    before: tuple[Traffic, float],
    begun: float,
    by_site: tuple[SiteCost, ...],
) -> EngineRun:
    """Return the run, once both parties have found that each received what the other sent.

    Args:
        size: images, and how many of them at most go into a ciphertext.
        before: traffic and seconds of the set-up.
    """
    seconds, total, (setup, setup_seconds) = time.perf_counter() - begun, link.traffic, before
    talk.send({"sent": total.sent, "received": total.received})
    (other,) = talk.others
    theirs = talk.receive(other, sent=int, received=int)
    if (theirs["sent"], theirs["received"]) != (total.received, total.sent):
        raise EngineError("the two parties count differently what they sent each other")
    return EngineRun(
        outputs=outputs[0],
        more_outputs=tuple(outputs[1:]),
        images=size[0],
        comparisons=0,
        pool_comparisons=0,
        bytes=total.bytes - setup.bytes,
        messages=total.messages - setup.messages,
        seconds=seconds,
        setup_bytes=setup.bytes,
        setup_seconds=setup_seconds,
        by_site=by_site,
        processes=2,
        batch=max(part.stop - part.start for part in batches(*size)),
        fraction_bits=SCALE_BITS,
        memory=peak_memory(),
    )

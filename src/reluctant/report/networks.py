"""Records put together: which of them speak of the same network, and which network it was made from."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from reluctant.records import KeptSite, NetworkCost, Record, Secure


@dataclass(frozen=True)
class Network:
    """One network, as its records tell of it.

    Args:
        records: all that speak of it, oldest first.
        label: what a table calls it; no two networks of a report share task, model and label.
        dense: the network it was made from, if there are records of that.
    """

    records: tuple[Record, ...]
    label: str
    dense: "Network | None" = None

    @property
    def head(self) -> Record:
        """The newest record; all of them agree on task, model, method, budget, seed and ReLUs."""
        return self.records[-1]

    @property
    def is_dense(self) -> bool:
        """Whether this is an ordinary network with all of its ReLUs."""
        return self.head.method is None and self.head.design is None

    @property
    def kept_share(self) -> float:
        """ReLUs kept, of all there were."""
        return self.head.relus["kept"] / max(1, self.head.relus["total"])

    @property
    def evaluation(self) -> Record | None:
        """The newest record with a test accuracy."""
        return self._newest("test")

    @property
    def accuracy(self) -> float | None:
        """Share of the test images answered right."""
        return self.evaluation.accuracy["test"] if self.evaluation else None

    @property
    def twin(self) -> Record | None:
        """The newest record with an accuracy under fixed point."""
        return self._newest("twin")

    @property
    def dense_accuracy(self) -> float | None:
        """Test accuracy of the network that this one was made from."""
        told = self._newest("teacher")
        if told:
            return told.accuracy.get("teacher")
        return self.dense.accuracy if self.dense else None

    @property
    def run(self) -> Record | None:
        """The newest private inference; a simulation, or one of a program without a rewrite, if there is no other."""
        runs = [record for record in self.records if record.secure and self._own(record.secure)]
        private = [record for record in runs if record.secure and record.secure["private"]] or runs
        whole = [record for record in private if record.secure and not record.secure.get("without")]
        return next(reversed(whole or private), None)

    @property
    def cost(self) -> NetworkCost | None:
        """What private inference cost with this network."""
        return self._own(self.run.secure) if self.run and self.run.secure else None

    @property
    def dense_cost(self) -> NetworkCost | None:
        """What it cost with the dense network under the same engine, rewrites, network, batch and fixed point."""
        if self.is_dense or self.run is None or self.run.secure is None:
            return None
        same = self.run.secure.get("dense")
        if same is None and self.dense is not None and self.dense.run is not None and self.dense.run.secure is not None:
            setting, other = setting_of_run(self.run), setting_of_run(self.dense.run)
            same = self.dense.run.secure.get("dense") if setting == other else None
        return same

    @property
    def sites(self) -> dict[str, KeptSite]:
        """What was kept at each site, in the order of the forward pass; empty if no record holds the mask."""
        mask = next((record.mask for record in reversed(self.records) if record.mask), None)
        return {site["name"]: site for site in mask["sites"]} if mask else {}

    def _own(self, secure: Secure) -> NetworkCost | None:
        return secure.get("dense") if self.is_dense else secure.get("linearized")

    def _newest(self, figure: str) -> Record | None:
        return next((record for record in reversed(self.records) if record.accuracy.get(figure) is not None), None)


def setting_of_run(run: Record) -> tuple[object, ...]:
    """Return what two secure runs must have in common for their costs to be compared."""
    secure = run.secure
    assert secure is not None
    made = (engine_of(secure), secure.get("transfers", "ferret"))
    return (*made, secure["network"], secure["batch"], secure["fraction_bits"], run.device)


def engine_of(secure: Secure) -> str:
    """Return the engine of a run, and which rewrites of the program were left out: ``cheetah without squares``."""
    without = secure.get("without", [])
    return f"{secure['engine']} without {', '.join(without)}" if without else secure["engine"]


def networks(records: Iterable[Record]) -> tuple[Network, ...]:
    """Return the networks of all complete records: by task and model, dense first, then from most ReLUs to least.

    Two records speak of one network if task, model, design, method, budget, seed and mask agree, and the checkpoint too
    where both name one; a search and the evaluation of what was tuned after it differ in that, and still belong
    together.
    """
    alike: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: datetime.fromisoformat(record.created)):
        if record.status == "complete":
            mask = record.mask["digest"] if record.mask and record.method else None
            alike[(record.task, record.model, record.design, record.method, record.budget, record.seed, mask)].append(
                record
            )
    found = [Network(group, "") for same in alike.values() for group in _by_checkpoint(same)]
    seen = list(dict.fromkeys(plain_label(network.head) for network in found))

    def place(network: Network) -> tuple[object, ...]:
        head = network.head
        return (
            head.task,
            head.model,
            not network.is_dense,
            -head.relus["kept"],
            seen.index(plain_label(head)),
            head.seed,
        )

    found.sort(key=place)
    labelled = [replace(network, label=_label(network, found)) for network in found]
    return tuple(n if n.is_dense else replace(n, dense=_origin(n, labelled)) for n in labelled)


def _by_checkpoint(records: Sequence[Record]) -> list[tuple[Record, ...]]:
    results = [record for record in records if record.kind in ("evaluate", "run") and record.checkpoint]
    digests = list(dict.fromkeys(record.checkpoint for record in results))
    if len(digests) <= 1:
        return [tuple(records)]
    return [
        tuple(
            record
            for record in records
            if record.checkpoint == digest or (record not in results and record.checkpoint not in digests)
        )
        for digest in digests
    ]


def plain_label(record: Record) -> str:
    """Return what a network is called when its seed does not matter: ``snl at 10%``, ``dense``."""
    name = " ".join(part for part in (record.design, record.method) if part) or "dense"
    return f"{name} at {record.budget}" if record.budget else name


def _label(network: Network, among: Sequence[Network]) -> str:
    head = network.head
    plain = plain_label(head)

    def same(other: Network, seed: bool) -> bool:
        theirs, ours = other.head, head
        return (theirs.task, theirs.model, theirs.design, theirs.method, theirs.budget) == (
            ours.task,
            ours.model,
            ours.design,
            ours.method,
            ours.budget,
        ) and (not seed or theirs.seed == ours.seed)

    if sum(same(other, seed=False) for other in among) == 1:
        return plain
    if sum(same(other, seed=True) for other in among) == 1:
        return f"{plain}, seed {head.seed}"
    return f"{plain}, seed {head.seed}, {head.digest[:6]}"


def _origin(network: Network, among: Sequence[Network]) -> Network | None:
    """Return the dense network that the records of ``network`` name.

    If they name none, the one of the same task and model, of the same seed if there is one; of several, none.
    """
    head = network.head
    dense = [n for n in among if n.is_dense and (n.head.task, n.head.model) == (head.task, head.model)]
    teacher = next((record.teacher for record in network.records if record.teacher), None)
    if teacher is not None:
        return next((n for n in dense if any(record.checkpoint == teacher for record in n.records)), None)
    alike = [n for n in dense if n.head.seed == head.seed] or dense
    return alike[0] if len(alike) == 1 else None

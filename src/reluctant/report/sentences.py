"""The words of a report: what was done, and what its reader must be told. Every number in them comes from a record."""

from collections import defaultdict
from collections.abc import Sequence

from reluctant.records import NetworkCost, Record, Secure
from reluctant.report.findings import comparisons_expected, dearer_sentence, promise_held
from reluctant.report.networks import Network, engine_of
from reluctant.units import format_bytes, format_seconds

#: With more networks than this of one model, a paragraph gives their range and leaves the rest to the tables.
NAMED = 4


def percent(share: float) -> str:
    """Return a share of 1 as ``96.9 %``; below 10 % three digits, so that 9.98 % is not called 10 %."""
    value = 100 * share
    return f"{value:.1f} %" if value >= 10 else f"{value:.3g} %"


def change(new: float, old: float) -> str:
    """Return by how much ``new`` is above or below ``old``: ``−57 %``, or ``×2.4`` where it at least doubled."""
    if not old:
        return ""
    if new / old >= 2:
        return f"×{new / old:.1f}"
    rounded = round(100 * (new / old - 1))
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else '±'}{abs(rounded)} %"


def lead(group: Sequence[Network]) -> list[str]:
    """Return what was done with the networks of one task and model, and what it cost, a paragraph each."""
    dense = next((network for network in group if network.is_dense), None)
    others = [network for network in group if not network.is_dense]
    done = [_dense_sentence(dense)] if dense else []
    if len(others) <= NAMED:
        done += [_kept_sentence(network, alone=dense is None) for network in others]
    else:
        kept = [network.head.relus["kept"] for network in others]
        done.append(f"{len(others)} networks were made from it, with {min(kept):,} to {max(kept):,} ReLUs left.")
    ran = [network for network in others if network.cost][:NAMED]
    return [" ".join(done), *([_cost_sentence(ran)] if ran else [])]


def _dense_sentence(network: Network) -> str:
    text = f"The dense network computes {network.head.relus['total']:,} ReLUs for an image"
    if network.evaluation is None or network.accuracy is None:
        return f"{text}."
    images = f"{network.evaluation.accuracy['n_test']:,} test images"
    return f"{text} and answers {percent(network.accuracy)} of {images} right."


def _kept_sentence(network: Network, *, alone: bool) -> str:
    relus = network.head.relus
    of = f" of {relus['total']:,}" if alone else ""
    text = f"With {network.label}, {relus['kept']:,}{of} ReLUs are left ({percent(network.kept_share)})"
    if network.evaluation is None or network.accuracy is None:
        return f"{text}; it was not evaluated on the test split."
    answers = f"{network.evaluation.accuracy['n_test']:,} test images" if alone else "the answers"
    return f"{text} and {percent(network.accuracy)} of {answers} are right."


def _cost_sentence(ran: Sequence[Network]) -> str:
    """All in the setting of the first; one that ran in another setting is left to the table."""
    same = [network for network in ran if measured(network) == measured(ran[0])]
    run, dense = same[0].run, same[0].dense_cost
    assert run is not None
    assert run.secure is not None
    costs = [f"{_price(dense)} with the dense network"] if dense else []
    costs += [f"{_price(network.cost)} with {network.label}" for network in same if network.cost]
    listed = costs[0] if len(costs) == 1 else f"{', '.join(costs[:-1])}, and {costs[-1]}"
    kind = "private inference" if run.secure["private"] else "a simulation of private inference"
    where = f"{promise(run.secure)}; {run.secure['network']}; {run.device}"
    return f"As {kind} under {engine_of(run.secure)} ({where}) one image takes {listed}."


def _price(cost: NetworkCost) -> str:
    images = max(1, cost["images"])
    return f"{format_bytes(cost['bytes'] / images)} and {format_seconds(cost['seconds'] / images)}"


def promise(secure: Secure) -> str:
    """Return what stands beside every number of a run: against whom it was private, or that it was not."""
    return secure["adversary"] if secure["private"] else "NOT PRIVATE"


def measured(network: Network) -> str:
    """Return what stands beside every latency: protocol, promise, network, batch, hardware; nothing without a run."""
    run = network.run
    if run is None or run.secure is None:
        return ""
    secure, processor = run.secure, str(run.environment.get("processor", ""))
    words = (engine_of(secure), promise(secure), secure["network"], f"batch {secure['batch']}", run.device, processor)
    return " · ".join(word for word in words if word)


def notices(records: Sequence[Record], networks: Sequence[Network]) -> list[tuple[str, str]]:
    """Return what a reader must not miss, each with the word that it stands under."""
    found = [notice for network in networks for notice in _of_a_run(network)]
    linearized = [network for network in networks if not network.is_dense]
    silent = [network for network in linearized if network.cost is None]
    if silent and len(silent) == len(linearized):
        found.append(("Not run", "Nothing here was run as private inference, so what that costs is not known."))
    elif silent:
        which = silent[0].label if len(silent) == 1 else f"{len(silent)} of {len(linearized)} linearized networks"
        found.append(("Not run", f"{which}: not run as private inference, so what that costs is not known."))
    lines: dict[str, list[str]] = defaultdict(list)
    for network in networks:
        for note in dict.fromkeys(record.note for record in network.records if record.note):
            lines[note].append(network.label)
    for note, labels in lines.items():
        about = ", ".join(labels) if len(labels) <= NAMED else f"{len(labels)} networks"
        found.append(("Note", f"{about}: {note}"))
    for record in records:
        if record.status == "failed":
            found.append(("Failed", f"{record.name}: nothing here is taken from it. {record.note or ''}".strip()))
    return found


def _of_a_run(network: Network) -> list[tuple[str, str]]:
    run, cost = network.run, network.cost
    if run is None or run.secure is None or cost is None:
        return []
    found = []
    dearer, expected = dearer_sentence(network), comparisons_expected(network)
    if dearer:
        found.append(("Dearer", dearer))
    if not run.secure["private"]:
        why = run.secure["statement"].removeprefix("Not private. ")
        found.append(
            ("Not private", f"{run.secure['engine']} only simulates private inference of {network.label}. {why}")
        )
    reference = "its fixed-point twin" if "argmax_equal_twin" in cost else "torch in float32"
    equal = cost.get("argmax_equal_twin", cost.get("argmax_equal_float", cost["images"]))
    if equal < cost["images"]:
        agreed = f"{equal:,} of {cost['images']:,} images"
        found.append(("Disagrees", f"{network.label} gave the answer of {reference} on {agreed}."))
    if cost["comparisons"] != expected:
        made = f"{network.label} made {cost['comparisons']:,} comparisons"
        found.append(("Disagrees", f"{made}; the ReLUs it keeps, times its images, are {expected:,}."))
    return found


def byte_sentence(network: Network) -> str | None:
    """Return what became of the bytes of comparisons, and whether those made are those kept; ``None`` without runs."""
    held, cost = promise_held(network), network.cost
    if held is None or cost is None:
        return None
    kept = f"{sum(row['kept'] for row in cost['by_site']):,} kept × {cost['images']:,} images"
    exact = f" = {kept}" if cost["comparisons"] == comparisons_expected(network) else f", not {kept}"
    return (
        f"{network.label}: {percent(held[0])} of the ReLUs are gone, and with them {percent(held[1])} of the bytes of "
        f"comparisons. Comparisons made: {cost['comparisons']:,}{exact}."
    )

"""One JSON file a finished experiment or secure run; written once, never edited.

A record is what every table, figure and sentence of a report is made of. Its keys and types are the annotations of
:class:`Record` and of the dictionaries it holds: reading and making one both check them. Each file carries the SHA-256
of its own contents, so a number that was changed afterwards is found.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_type_hints

from reluctant.annotations import check
from reluctant.errors import RecordError
from reluctant.files import write_atomically
from reluctant.provenance import environment, source_version, typed_command

SCHEMA = 1
SUFFIX = ".record.json"
_MAY_MISS = frozenset({"predicted", "teacher"})  # not in the first records; in a file only if there is something to say

Kind = Literal["train", "linearize", "evaluate", "run"]
Track = Literal["free", "affine", "polynomial"]
Status = Literal["complete", "failed"]


class Relus(TypedDict):
    """ReLUs of one inference with one image: all there were, and those kept."""

    total: int
    kept: int
    sites: int
    sites_kept: int


class Accuracy(TypedDict):
    """Shares of right answers, 0 to 1, and over how many images.

    ``teacher`` is the test accuracy of the network that this one was made from, ``twin`` the accuracy under the fixed
    point of the secure run.
    """

    val: float | None
    test: float | None
    n_test: int | None
    n_val: NotRequired[int | None]
    teacher: NotRequired[float | None]
    twin: NotRequired[float | None]
    n_twin: NotRequired[int | None]


class KeptSite(TypedDict):
    """One site of a mask; ``density`` counts, at each pixel ``[H][W]``, the channels whose ReLU is kept."""

    name: str
    shape: list[int]
    kept: int
    total: int
    density: NotRequired[list[list[int]] | None]


class KeptReLUs(TypedDict):
    """Which ReLUs were kept: the mask's SHA-256, and its sites in the order of the forward pass."""

    digest: str
    sites: list[KeptSite]


class SiteCost(TypedDict):
    """What the activation step of one site cost, over all images: comparisons and surrogates apart."""

    name: str
    kept: int
    comparisons: int
    comparison_bytes: int
    surrogate_bytes: int
    messages: int
    seconds: float


class FixedPoint(TypedDict):
    """Whether a network's numbers fit the fixed point of a run, for inputs from ``input_range[0]`` to ``[1]``.

    ``certified`` is a proof for every such image, else ``margin_bits`` was measured over ``images``; ``operation`` is
    the one with the least margin, and ``statement`` says it in a line.
    """

    certified: bool
    margin_bits: float
    operation: str
    input_range: list[float]
    images: int
    statement: str


class NetworkCost(TypedDict):
    """What private inference cost with one network: all images, both directions together, set-up apart.

    ``argmax_equal_twin`` counts the images whose answer is the one of the fixed-point twin, ``argmax_equal_float``
    those whose answer is that of the network in float32; an engine without a twin has only the latter. ``memory`` is
    that of the party which needed most, 0 where it was not measured.
    """

    images: int
    argmax_equal_twin: NotRequired[int]
    max_abs_error_twin: NotRequired[float]
    argmax_equal_float: NotRequired[int]
    max_abs_error_float: NotRequired[float]
    comparisons: int
    bytes: int
    messages: int
    seconds: float
    setup_bytes: int
    setup_seconds: float
    memory: NotRequired[int]
    fixed_point: NotRequired[FixedPoint]
    by_site: list[SiteCost]


class Predicted(TypedDict):
    """What private inference with one image would cost, by a table of measured prices; both directions together.

    ``seconds`` are by link, after set-up, on the machine that was measured; ``memory`` is a party's. Records that were
    written before these were predicted have none of the last four.
    """

    engine: str
    bytes: int
    messages: int
    comparison_bytes: int
    surrogate_bytes: int
    linear_bytes: int
    pooling_bytes: int
    seconds: NotRequired[dict[str, float]]
    setup_bytes: NotRequired[int]
    setup_seconds: NotRequired[dict[str, float]]
    memory: NotRequired[int]


class Secure(TypedDict):
    """A run of an engine: what it promises, how it was set, and what each network cost.

    ``private`` is false for an engine that only simulates. ``public`` lists what all parties learn, ``link`` says how
    the bytes travelled, ``transfers`` how oblivious transfers were made, where the protocol has any, ``without`` which
    rewrites were left out of the program, if any.
    """

    engine: str
    adversary: str
    parties: int
    dealer: str
    private: bool
    offline_included: bool
    statement: str
    processes: int
    network: str
    batch: int
    fraction_bits: int
    public: NotRequired[list[str]]
    link: NotRequired[str]
    transfers: NotRequired[str]
    without: NotRequired[list[str]]
    dense: NotRequired[NetworkCost | None]
    linearized: NotRequired[NetworkCost | None]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was done, with what, and what came out.

    Args:
        kind: ``train`` (a dense network), ``linearize`` (a mask found and tuned), ``evaluate`` (the one reading of the
            test split) or ``run`` (private inference; it has ``secure``).
        task, model: names.
        design, method: names, ``None`` for an ordinary network and for a dense one.
        track: by what a dropped ReLU costs in an engine: identity, a bias or a constant are ``free``.
        surrogate: its name; ``None`` in a dense network.
        budget: as typed (``10%``).
        squares: elements an image whose ReLU became a square.
        epochs: passes over the training split, the search included; ``None`` where nothing was trained.
        seconds: wall-clock time of all of it.
        device: see :func:`reluctant.provenance.describe_device`.
        selection: how the checkpoint was chosen, in a line.
        recipe: the settings, resolved, or the name of a recipe.
        checkpoint: digest of the weights, so that records of one network find each other.
        teacher: the ``checkpoint`` of the dense network that this one was made from; ``None``, and not in the file,
            where there is none or it is not known.
        predicted: what a private inference would cost; ``None``, and not in the file, where that is not known.
        note: a free line.
        extra: keys of a file that this version does not know; they are kept.

    Raises:
        RecordError: a value of the wrong type, or numbers that contradict each other.
    """

    kind: Kind
    task: str
    model: str
    relus: Relus
    accuracy: Accuracy
    seed: int
    seconds: float
    device: str
    design: str | None = None
    method: str | None = None
    track: Track = "free"
    surrogate: str | None = None
    budget: str | None = None
    squares: int = 0
    epochs: int | None = None
    selection: str | None = None
    mask: KeptReLUs | None = None
    checkpoint: str | None = None
    teacher: str | None = None
    secure: Secure | None = None
    predicted: Predicted | None = None
    recipe: dict[str, Any] | str | None = None
    command: str = field(default_factory=typed_command)
    commit: str = field(default_factory=source_version)
    environment: dict[str, str | int] = field(default_factory=environment)
    created: str = field(default_factory=_now)
    status: Status = "complete"
    note: str | None = None
    schema: int = SCHEMA
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check all values and cut the ties to the caller's lists and dictionaries."""
        for name, value in _plain(vars(self)).items():
            object.__setattr__(self, name, value)
        _check_keys(vars(self))
        for problem in _contradictions(self):
            raise RecordError(problem)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, its digest last."""
        content = {k: v for k in _keys() if (v := getattr(self, k)) is not None or k not in _MAY_MISS} | self.extra
        return content | {"digest": _digest(content)}

    @classmethod
    def from_json(cls, content: object, source: str = "record") -> "Record":
        """Return the record that :meth:`to_json` wrote.

        Args:
            source: what to call it in an error, for instance a file.

        Raises:
            RecordError: an unknown schema, a missing key, a wrong type, or contents that do not fit their digest.
        """
        if not isinstance(content, dict):
            raise RecordError(f"{source}: is not a JSON object, so not a record")
        if content.get("schema") != SCHEMA:
            raise RecordError(
                f"{source}: key 'schema' is {content.get('schema')!r}, this version reads {SCHEMA}; update reluctant"
            )
        rest = {key: value for key, value in content.items() if key != "digest"}
        fits = content.get("digest") == _digest(rest)
        try:
            _check_keys(content)
            record = cls(**{key: rest.pop(key) for key in _keys() if key in rest}, extra=rest)
        except RecordError as error:
            raise RecordError(f"{source}: {error}") from error
        if not fits:
            raise RecordError(
                f"{source}: key 'digest' does not fit the contents, so the record was changed after it was written; "
                "restore it or run the experiment again"
            )
        return record

    @property
    def digest(self) -> str:
        """SHA-256 of the contents, in hexadecimal."""
        return str(self.to_json()["digest"])

    @property
    def name(self) -> str:
        """A readable file name, without its suffix, that no other record has."""
        parts = (self.kind, self.task, self.model, self.design, self.method or "dense", self.budget, f"s{self.seed}")
        words = (re.sub(r"[^A-Za-z0-9._]+", "_", part.replace("%", "pct")).strip("._") for part in parts if part)
        failed = ["failed"] if self.status == "failed" else []
        return "-".join([*failed, *(word for word in words if word), self.digest[:8]])

    def save(self, folder: Path | str) -> Path:
        """Write the record to a file of its own in ``folder``, whole or not at all, and return its path.

        Raises:
            RecordError: that file holds something else.
        """
        path = Path(folder) / f"{self.name}{SUFFIX}"
        if path.exists():
            if Record.load(path) != self:
                raise RecordError(f"{path}: holds another record, and records are never overwritten; remove it first")
            return path
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        write_atomically(path, (re.sub(r"\[\n[\s\d,]*\]", _on_one_line, text) + "\n").encode())
        return path

    @classmethod
    def load(cls, path: Path | str) -> "Record":
        """Return the record in the file ``path``.

        Raises:
            RecordError: no such file, not JSON, or not a record; file and key are named.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:
            raise RecordError(f"{path}: is not JSON ({error}); the file is damaged or cut short") from error
        return cls.from_json(content, str(path))


def load_records(paths: Iterable[Path | str]) -> list[Record]:
    """Return the records in the files, and anywhere below the folders, of ``paths``: oldest first, each once.

    In a folder only ``*.record.json`` are read.

    Raises:
        RecordError: a file that is no record, a path that does not exist, or no record at all.
    """
    found: dict[str, Record] = {}
    asked = [Path(path) for path in paths]
    for path in asked:
        files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
        for record in map(Record.load, files):
            found[record.digest] = record
    if not found:
        where = ", ".join(map(str, asked)) or "no path"
        raise RecordError(f"no records (*{SUFFIX}) under {where}; run `reluctant train`, `evaluate` or `run` first")
    return sorted(found.values(), key=lambda record: (datetime.fromisoformat(record.created), record.digest))


def describe_kept(mask: Mapping[str, Any], digest: str) -> KeptReLUs:
    """Return the entry ``mask`` of a record.

    Args:
        mask: site -> boolean array or tensor of its per-sample shape, True = kept, in the order of the forward pass.
            A site of shape ``[C, H, W]`` gets a ``density``, any other none.
        digest: of the mask.
    """
    sites: list[KeptSite] = []
    for name, keep in mask.items():
        shape = [int(size) for size in keep.shape]
        row: KeptSite = {"name": name, "shape": shape, "kept": int(keep.sum()), "total": int(keep.reshape(-1).shape[0])}
        if len(shape) == 3:
            row["density"] = keep.sum(0).tolist()
        sites.append(row)
    return {"digest": digest, "sites": sites}


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{', '.join(re.findall(r'[0-9]+', numbers[0]))}]"


def _keys() -> list[str]:
    names = [entry.name for entry in fields(Record) if entry.name not in ("schema", "extra")]
    return ["schema", *names]


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of ``values``, or say which of them it cannot hold."""
    plain = {}
    for key, value in values.items():
        try:
            plain[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RecordError(f"key {key!r} cannot be written as JSON ({error})") from error
    return plain


def _check_keys(content: Mapping[str, Any]) -> None:
    hints = get_type_hints(Record, include_extras=True)
    for key in _keys():
        if key in content:
            check(content[key], hints[key], key)
        elif key not in _MAY_MISS:
            raise RecordError(f"key {key!r} is missing")


def _contradictions(record: Record) -> Iterable[str]:
    """Yield what cannot all be true at once in ``record``."""
    relus, accuracy = record.relus, record.accuracy
    if not 0 <= relus["kept"] <= relus["total"]:
        yield f"key 'relus.kept' is {relus['kept']:,}, expected 0 to {relus['total']:,}"
    if not 0 <= relus["sites_kept"] <= relus["sites"]:
        yield f"key 'relus.sites_kept' is {relus['sites_kept']}, expected 0 to {relus['sites']}"
    for key, share in accuracy.items():
        if isinstance(share, float) and not 0 <= share <= 1:
            yield f"key 'accuracy.{key}' is {share}, expected a share from 0 to 1"
    if accuracy["test"] is not None and not accuracy["n_test"]:
        yield "key 'accuracy.n_test' is missing beside a test accuracy"
    if (record.secure is not None) != (record.kind == "run"):
        yield f"key 'secure' belongs to records of kind 'run' and to no other, this is {record.kind!r}"
    try:
        aware = datetime.fromisoformat(record.created).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        yield f"key 'created' is {record.created!r}, expected a UTC time like 2026-01-31T12:00:00+00:00"
    if record.method is not None and record.mask is None and record.status == "complete":
        yield "key 'mask' is missing beside a method; say which ReLUs were kept"
    if record.mask is not None:
        yield from _mask_contradictions(record.mask, relus)
    for name in ("dense", "linearized"):
        cost = record.secure.get(name) if record.secure else None
        for key in ("argmax_equal_twin", "argmax_equal_float"):
            if isinstance(cost, dict) and not 0 <= cost.get(key, 0) <= cost["images"]:
                yield f"key 'secure.{name}.{key}' counts images, of which there are {cost['images']}"


def _mask_contradictions(mask: KeptReLUs, relus: Relus) -> Iterable[str]:
    for key in ("kept", "total"):
        total = sum(site[key] for site in mask["sites"])
        if total != relus[key]:
            yield f"key 'mask.sites' sums to {total:,} ReLUs {key}, key 'relus.{key}' is {relus[key]:,}"
    for index, site in enumerate(mask["sites"]):
        density = site.get("density")
        if density is not None and sum(map(sum, density)) != site["kept"]:
            yield f"key 'mask.sites[{index}].density' does not sum to the {site['kept']:,} ReLUs kept there"

"""Records: written once, read whole, and not to be tampered with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reluctant.errors import RecordError
from reluctant.mask import Mask
from reluctant.records import Record, describe_kept, load_records

KEEP = {"a": torch.tensor([[[True, False], [False, False]], [[True, True], [False, False]]]), "b": torch.ones(3) > 2}


def cost(**changes: Any) -> dict[str, Any]:
    row = {"name": "a", "kept": 3, "comparisons": 6, "comparison_bytes": 590, "surrogate_bytes": 0, "messages": 80}
    return {
        "images": 2, "argmax_equal_twin": 2, "max_abs_error_twin": 1e-4, "comparisons": 6, "bytes": 4000,
        "messages": 90, "seconds": 0.5, "setup_bytes": 10, "setup_seconds": 4.0, "by_site": [row | {"seconds": 0.1}],
    } | changes  # fmt: skip


def secure(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "cheetah", "adversary": "semi-honest", "parties": 2, "dealer": "none", "private": True,
        "offline_included": True, "statement": "Neither party learns more.", "processes": 2, "network": "loopback",
        "batch": 1, "fraction_bits": 18, "linearized": cost(),
    } | changes  # fmt: skip


def record(**changes: Any) -> Record:
    content: dict[str, Any] = {
        "kind": "run",
        "task": "digits",
        "model": "resnet8",
        "method": "snl",
        "budget": "25%",
        "surrogate": "identity",
        "relus": {"total": 11, "kept": 3, "sites": 2, "sites_kept": 1},
        "accuracy": {"val": 0.975, "test": None, "n_test": None},
        "mask": describe_kept(KEEP, "00ff"),
        "seed": 7,
        "seconds": 1.5,
        "device": "cpu, 2 threads",
        "secure": secure(),
        "command": "reluctant run runs/snl",
        "commit": "abc1234",
        "environment": {"python": "3.11.7", "cpus": 2},
    }
    return Record(**(content | changes))


def altered(path: Path, **changes: Any) -> Path:
    """A copy of the record changed by hand; ``a__b`` reaches into ``a``, ``None`` removes the key."""
    content = json.loads(path.read_text())
    for keys, value in changes.items():
        *outer, last = (int(key) if key.isdigit() else key for key in keys.split("__"))
        place = content
        for key in outer:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    other = path.with_name("altered.record.json")
    other.write_text(json.dumps(content))
    return other


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = record(recipe={"lr": 1e-3, "milestones": [1, 2]}, note="α, “quoted”\nsecond line")
    assert Record.load(made.save(tmp_path)) == made


def test_a_prediction_is_kept_and_is_no_key_of_records_without_one(tmp_path: Path) -> None:
    """Records that were written before there were predictions stay what they were, to the digest."""
    parts = {"comparison_bytes": 2, "surrogate_bytes": 0, "linear_bytes": 1, "pooling_bytes": 0}
    predicted = {"engine": "cheetah", "bytes": 5_439_519, "messages": 329, **parts}
    made, without = record(predicted=predicted), record()
    assert Record.load(made.save(tmp_path)).predicted == predicted
    written = json.loads(without.save(tmp_path).read_text())
    assert "predicted" not in written
    assert Record.from_json(written).digest == written["digest"] == without.digest != made.digest
    with pytest.raises(RecordError, match=r"key 'predicted\.messages' is missing"):
        record(predicted={key: value for key, value in predicted.items() if key != "messages"})


def test_the_file_name_is_readable_and_ends_in_the_digest(tmp_path: Path) -> None:
    made = record(model="path/to my.py:net", budget="250ms@cheetah/wan")
    assert (
        made.save(tmp_path).name
        == f"run-digits-path_to_my.py_net-snl-250ms_cheetah_wan-s7-{made.digest[:8]}.record.json"
    )


def test_the_file_holds_every_key_of_the_published_layout(tmp_path: Path) -> None:
    content = json.loads(record().save(tmp_path).read_text())
    published = {
        "schema", "kind", "task", "model", "design", "method", "track", "budget", "relus", "squares", "accuracy",
        "seed", "epochs", "seconds", "device", "recipe", "command", "commit", "status",
    }  # fmt: skip
    assert published <= set(content)
    assert set(content["relus"]) == {"total", "kept", "sites", "sites_kept"}
    assert {"val", "test", "n_test"} <= set(content["accuracy"])


def test_counts_a_pixel_stand_on_one_line_and_strings_stay_as_they_are(tmp_path: Path) -> None:
    text = record(note="[\n 1,\n 2\n]").save(tmp_path).read_text()
    assert "[2, 1]" in text
    assert json.loads(text)["note"] == "[\n 1,\n 2\n]"


def test_density_counts_channels_at_each_pixel_and_only_where_there_are_pixels() -> None:
    described = describe_kept(KEEP, "00ff")
    assert described["sites"] == [
        {"name": "a", "shape": [2, 2, 2], "kept": 3, "total": 8, "density": [[2, 1], [0, 0]]},
        {"name": "b", "shape": [3], "kept": 0, "total": 3},
    ]


def test_a_mask_describes_itself() -> None:
    mask = Mask(KEEP)
    described = describe_kept(mask, mask.digest)
    assert described["digest"] == mask.digest
    assert sum(site["kept"] for site in described["sites"]) == mask.kept


def test_saving_twice_writes_once(tmp_path: Path) -> None:
    made = record()
    first = made.save(tmp_path)
    assert made.save(tmp_path) == first
    assert list(tmp_path.iterdir()) == [first]


def test_a_file_with_other_contents_is_not_overwritten(tmp_path: Path) -> None:
    made = record()
    path = made.save(tmp_path)
    path.write_text(record(seed=8).save(tmp_path / "other").read_text())
    with pytest.raises(RecordError, match="never overwritten"):
        made.save(tmp_path)


@pytest.mark.parametrize("key", ["seed", "secure__linearized__bytes", "accuracy__val"])
def test_a_changed_number_is_found(tmp_path: Path, key: str) -> None:
    path = altered(record().save(tmp_path), **{key: 1})
    with pytest.raises(RecordError, match=r"altered.*'digest'.*changed after it was written"):
        Record.load(path)


def test_an_added_key_is_kept_if_it_was_there_from_the_start(tmp_path: Path) -> None:
    made = record(extra={"energy": {"joules": 3.5}})
    read = Record.load(made.save(tmp_path))
    assert read.extra == {"energy": {"joules": 3.5}}
    assert read.to_json()["energy"] == {"joules": 3.5}


def test_a_nested_unknown_key_is_kept(tmp_path: Path) -> None:
    made = record(secure=secure(ring="FM64"))
    assert Record.load(made.save(tmp_path)).to_json()["secure"]["ring"] == "FM64"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "key 'schema' is 99"),
        ({"schema": None}, "key 'schema' is None"),
        ({"device": None}, "key 'device' is missing"),
        ({"relus__kept": None}, "key 'relus.kept' is missing"),
        ({"secure__linearized__by_site__0__messages": None}, r"'secure.linearized.by_site\[0\].messages' is missing"),
        ({"seed": "7"}, "key 'seed' is \"7\", expected an integer"),
        ({"seed": True}, "key 'seed' is true, expected an integer"),
        ({"secure__private": 1}, "key 'secure.private' is 1, expected true or false"),
        ({"secure__linearized__seconds": "fast"}, "key 'secure.linearized.seconds' is \"fast\", expected a number"),
        ({"accuracy__val": "good"}, "key 'accuracy.val' is \"good\", expected a number or null"),
        ({"kind": "guess"}, "key 'kind' is \"guess\", expected 'train' or 'linearize' or 'evaluate' or 'run'"),
        ({"recipe": 3}, "key 'recipe' is 3, expected an object or a string or null"),
        ({"mask__sites": {}}, "key 'mask.sites' is {}, expected a list"),
        ({"mask__sites__0__shape__1": 2.5}, r"key 'mask.sites\[0\].shape\[1\]' is 2.5, expected an integer"),
        ({"relus__kept": 12}, "key 'relus.kept' is 12, expected 0 to 11"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bad = altered(record().save(tmp_path), **change)
    with pytest.raises(RecordError, match=message) as caught:
        Record.load(bad)
    assert str(caught.value).startswith(f"{bad}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relus": {"total": 11, "kept": 12, "sites": 2, "sites_kept": 1}}, "relus.kept"),
        ({"relus": {"total": 11, "kept": 3, "sites": 2, "sites_kept": 3}}, "relus.sites_kept"),
        ({"relus": {"total": 11, "kept": 4, "sites": 2, "sites_kept": 1}}, "mask.sites.*3 ReLUs kept"),
        ({"accuracy": {"val": 97.5, "test": None, "n_test": None}}, "share from 0 to 1"),
        ({"accuracy": {"val": None, "test": 0.9, "n_test": None}}, "accuracy.n_test"),
        ({"kind": "evaluate"}, "belongs to records of kind 'run'"),
        ({"secure": None}, "belongs to records of kind 'run'"),
        ({"mask": None}, "'mask' is missing beside a method"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-31T12:00:00"}, "created"),
        ({"seconds": float("nan")}, "'seconds' cannot be written as JSON"),
        ({"secure": secure(linearized=cost(argmax_equal_twin=3))}, "argmax_equal_twin"),
        ({"extra": {"path": Path("x")}}, "'extra' cannot be written as JSON"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record(**changes)


def test_a_density_that_does_not_add_up_is_refused() -> None:
    mask = describe_kept(KEEP, "00ff")
    mask["sites"][0]["density"] = [[2, 0], [0, 0]]
    with pytest.raises(RecordError, match=r"mask.sites\[0\].density"):
        record(mask=mask)


def test_a_record_does_not_follow_changes_to_what_it_was_made_of() -> None:
    relus = {"total": 11, "kept": 3, "sites": 2, "sites_kept": 1}
    made = record(relus=relus)
    relus["kept"] = 2
    assert made.relus["kept"] == 3


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"record"'])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.record.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        Record.load(path)
    assert str(caught.value).startswith(f"{path}: is not ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere.*check the path"):
        Record.load(tmp_path / "nowhere.json")


def test_folders_are_searched_and_a_record_counts_once(tmp_path: Path) -> None:
    early = record(created="2026-01-31T12:00:00+00:00")
    late = record(created="2026-01-31T13:30:00+02:00", seed=8)
    early.save(tmp_path / "runs" / "a")
    path = early.save(tmp_path / "copy")
    late.save(tmp_path / "runs" / "b" / "deep")
    (tmp_path / "runs" / "card.json").write_text("[]")
    assert load_records([tmp_path / "runs", path]) == [late, early]


def test_a_damaged_record_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(RecordError, match="cut short"):
        load_records([tmp_path])


def test_a_folder_without_records_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"no records .* under {tmp_path}"):
        load_records([tmp_path])


def test_a_failed_record_may_lack_a_mask() -> None:
    assert record(mask=None, status="failed").mask is None


def test_arrays_are_described_as_tensors_are() -> None:
    assert describe_kept({"a": KEEP["a"].numpy()}, "") == describe_kept({"a": KEEP["a"]}, "")

"""What is saved comes back the same; what was changed since is refused in one line."""

import copy
import json
from pathlib import Path

import pytest
import torch
import zoo
from safetensors import safe_open
from safetensors.torch import save_file

from reluctant.checkpoints import (
    FILE,
    Origin,
    load_checkpoint,
    load_origin,
    round_weights,
    save_checkpoint,
    weights_digest,
)
from reluctant.errors import CheckpointError, UsageError
from reluctant.linearization import linearize
from reluctant.masked import attach
from reluctant.methods import METHODS
from reluctant.recording import as_records
from reluctant.sites import find_sites
from reluctant.surrogates import SURROGATES
from reluctant.training import evaluate

ORIGIN = Origin("resnet8:width=8", "digits", 10, (1, 8, 8))


@pytest.fixture
def saved(trained, tmp_path):
    (path,) = save_checkpoint(tmp_path, trained, ORIGIN)
    return path


@pytest.mark.parametrize("surrogate", SURROGATES.values())
def test_a_linearized_network_comes_back_the_same(trained, few_digits, tmp_path, surrogate):
    masked = attach(trained, find_sites(trained, few_digits.example), surrogate())
    masked.set_mask(linearize(trained, METHODS["random"](), "30%", few_digits).mask)
    for constant in masked.constants():
        torch.nn.init.normal_(constant)
    save_checkpoint(tmp_path, masked, ORIGIN)
    loaded = load_checkpoint(tmp_path)
    images = few_digits.val.inputs(slice(16))
    assert loaded.masked.mask == masked.mask
    assert loaded.masked.surrogate == surrogate()
    assert torch.equal(loaded.model(images), masked.eval()(images))
    assert weights_digest(loaded.model) == weights_digest(masked)
    assert loaded.origin == ORIGIN


def test_a_dense_network_comes_back_under_its_own_weight_names(trained, saved, few_digits):
    with safe_open(saved, "pt") as file:
        assert set(file.keys()) == set(trained.state_dict())
    loaded = load_checkpoint(saved.parent)
    assert loaded.masked is None
    images = few_digits.val.inputs(slice(16))
    assert torch.equal(loaded.model(images), trained.eval()(images))


def test_masks_take_one_bit_a_relu(trained, few_digits, tmp_path):
    small = linearize(trained, METHODS["random"](), "30%", few_digits)
    (path,) = save_checkpoint(tmp_path, small, ORIGIN)
    with safe_open(path, "pt") as file:
        bits = sum(file.get_tensor(n).numel() * 8 for n in file.keys() if n.startswith("reluctant.mask/"))  # noqa: SIM118
    assert bits - small.sites.total < 8 * len(small.sites)


def test_a_flipped_byte_anywhere_is_seen(saved):
    good = saved.read_bytes()
    for place in (12, 300, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 0x10
        saved.write_bytes(bad)
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors (is cut short or damaged|has been altered|was not)"
        ):
            load_checkpoint(saved.parent)


@pytest.mark.parametrize("size", [0, 5, 100, 5000])
def test_a_file_cut_short_is_seen(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_checkpoint(saved.parent)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}: expected a folder with {FILE}"):
        load_checkpoint(tmp_path)


def test_weights_of_somebody_else_are_not_a_checkpoint(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / FILE)
    with pytest.raises(CheckpointError, match="not written by reluctant"):
        load_checkpoint(tmp_path)


def test_weights_of_another_model_are_refused(trained, tmp_path):
    save_checkpoint(tmp_path, trained, Origin("resnet8:width=16", "digits", 10, (1, 8, 8)))
    with pytest.raises(CheckpointError, match="not of the model resnet8:width=16: size mismatch"):
        load_checkpoint(tmp_path)


def test_a_users_model_that_has_changed_is_refused(tmp_path):
    code = tmp_path / "mine.py"
    text = Path(zoo.__file__).read_text() + "\ndef build():\n    return SharedBlock()\n"
    code.write_text(text)
    model = zoo.SharedBlock().eval()
    masked = attach(model, find_sites(model, torch.zeros(1, 3, 8, 8)))
    save_checkpoint(tmp_path, masked, Origin(f"{code}:build", "cifar10", 5, (3, 8, 8)))
    assert load_checkpoint(tmp_path).masked.mask == masked.mask
    code.write_text(text.replace("self.relu(self.relu(", "(self.relu("))
    with pytest.raises(CheckpointError, match="other ReLU sites; the model's code has changed"):
        load_checkpoint(tmp_path)
    code.unlink()
    with pytest.raises(UsageError, match=r"mine\.py"):
        load_checkpoint(tmp_path)


def test_a_format_of_the_future_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("reluctant.checkpoints.FORMAT", 99)
    save_checkpoint(tmp_path, trained, ORIGIN)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        load_checkpoint(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(saved, trained, monkeypatch):
    good = saved.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save_checkpoint(saved.parent, trained, Origin("resnet8:width=8", "digits", 10, (1, 8, 8), budget="1%"))
    assert saved.read_bytes() == good
    assert [path.name for path in saved.parent.iterdir()] == [FILE]


def test_nothing_in_the_metadata_but_json(saved):
    with safe_open(saved, "pt") as file:
        about = json.loads(file.metadata()["reluctant"])
    assert about["model"] == "resnet8:width=8"


def test_a_reloaded_network_is_still_known_as_linearized(trained, few_digits, tmp_path):
    small = linearize(trained, METHODS["random"](), "30%", few_digits)
    method = METHODS["random"]().to_json()
    save_checkpoint(tmp_path, small, Origin("resnet8:width=8", "digits", 10, (1, 8, 8), method=method, budget="30%"))
    loaded = load_checkpoint(tmp_path).model
    by_hand = attach(trained, find_sites(trained, few_digits.example)).set_mask(small.mask)
    one, two, dense = as_records([evaluate(m, few_digits, "val") for m in (loaded, by_hand, trained)])
    assert (one.method, one.budget, one.relus["kept"]) == ("random", "30%", small.mask.kept)
    assert two.method == "by hand"
    assert dense.method is None


@pytest.fixture
def parts(trained, few_digits, tmp_path, monkeypatch):
    """A linearized network in bf16, kept small in parts of 24 KiB, and those files."""
    monkeypatch.setattr("reluctant.checkpoints.PART_BYTES", 24 * 1024)
    network = linearize(trained, METHODS["random"](), "30%", few_digits)
    round_weights(network)
    return network, save_checkpoint(tmp_path, network, ORIGIN, small=True)


def test_a_small_network_comes_back_from_its_parts(parts, few_digits):
    network, files = parts
    assert len(files) > 1
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 24 * 1024 + 10 * 1024 for file in files)
    images = few_digits.val.inputs(slice(16))
    for place in (files[0].parent, files[1]):
        loaded = load_checkpoint(place).model
        assert weights_digest(loaded) == weights_digest(network)
        assert torch.equal(loaded(images), network(images))
    assert load_origin(files[0].parent) == ORIGIN


def test_small_means_half_the_bytes(trained, tmp_path):
    round_weights(trained := copy.deepcopy(trained))
    (whole,) = save_checkpoint(tmp_path / "whole", trained, ORIGIN)
    (small,) = save_checkpoint(tmp_path / "small", trained, ORIGIN, small=True)
    assert small.stat().st_size < 0.6 * whole.stat().st_size


def test_missing_and_foreign_parts_are_seen(parts, trained):
    _, files = parts
    folder, last = files[0].parent, files[-1].read_bytes()
    files[-1].unlink()
    with pytest.raises(CheckpointError, match=f"holds {len(files) - 1} files of a network in 0000{len(files)} parts"):
        load_checkpoint(folder)
    files[-1].write_bytes(last)
    other = copy.deepcopy(trained)
    torch.nn.init.ones_(other.conv1.weight)
    round_weights(other)
    foreign = save_checkpoint(folder / "other", other, ORIGIN, small=True)
    files[0].write_bytes(foreign[0].read_bytes())
    with pytest.raises(CheckpointError, match="has been altered"):
        load_checkpoint(folder)


def test_the_network_written_last_is_the_one_there(parts, trained):
    network, files = parts
    save_checkpoint(files[0].parent, trained, ORIGIN)
    assert weights_digest(load_checkpoint(files[0].parent).model) == weights_digest(trained)
    save_checkpoint(files[0].parent, network, ORIGIN, small=True)
    assert weights_digest(load_checkpoint(files[0].parent).model) == weights_digest(network)


def test_weights_that_are_not_rounded_are_not_kept_small(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"conv1\.weight is not rounded to bf16; call round_weights first"):
        save_checkpoint(tmp_path, trained, ORIGIN, small=True)


def test_a_tensor_larger_than_a_part_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("reluctant.checkpoints.PART_BYTES", 1024)
    round_weights(trained := copy.deepcopy(trained))
    with pytest.raises(CheckpointError, match=r"conv.*weight takes [\d,]+ bytes, more than a part may"):
        save_checkpoint(tmp_path, trained, ORIGIN, small=True)
    assert not list(tmp_path.iterdir())

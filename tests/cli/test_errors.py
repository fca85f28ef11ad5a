"""Bad input: one clear line, exit code 2, nothing half-written."""

import gzip
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zoo

from reluctant.checkpoints import FILE

SHORT = ("--set", "finetune.epochs=1")


def test_unknown_names_come_with_the_nearest(refused, teacher):
    assert "unknown method 'snk'; did you mean 'snl'" in refused(
        "linearize", teacher, "--method", "snk", "--budget", "10%", "--out", "x"
    )
    assert "unknown engine 'cheeta'; did you mean 'cheetah'" in refused("run", teacher, "--engine", "cheeta")
    assert "delphi cannot be run here, only priced by an analytic profile" in refused(
        "run", teacher, "--engine", "delphi"
    )
    assert "unknown task 'digit'; did you mean 'digits'" in refused("train", "resnet8", "--task", "digit", "--out", "x")
    assert "unknown model 'resnet19'; did you mean 'resnet1" in refused("sites", "resnet19")
    assert "unknown option of resnet18 'stemrelu'; did you mean 'stem_relu'" in refused("sites", "resnet18:stemrelu=no")
    assert "unknown setting of method snl 'penalti'; did you mean 'penalty'" in refused(
        "linearize", teacher, "--method", "snl", "--budget", "10%", "--set", "method.penalti=1", "--out", "x"
    )
    assert "unknown finetune setting 'epoch'; did you mean 'epochs'" in refused(
        "linearize", teacher, "--method", "snl", "--budget", "10%", "--set", "finetune.epoch=1", "--out", "x"
    )
    Path("r.toml").write_text('budgt = "10%"\n')
    assert "unknown recipe key 'budgt'; did you mean 'budget'" in refused(
        "linearize", teacher, "--recipe", "r.toml", "--out", "x"
    )


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ("600k", "reaches all 2,304 ReLUs of this model (7 sites); nothing to linearize"),
        ("0MB@cheetah", "must be above zero"),
        ("-5", "must be above zero"),
        ("10 parsecs", "unknown unit 'parsecs'"),
        ("many", "is not a number with a unit"),
        ("40MB@cheetah", "reaches all 2,304 ReLUs of this model (7 sites), which cost 5.07 MB; nothing to linearize"),
        ("600kB@cheetah", "is under the 628 kB that this network costs with a single ReLU; give more"),
        ("1ms@cheetah/wan", "take a smaller network or a faster link"),
        ("4.9MB", "is in bytes, which depend on an engine alone: write 4.9MB@cheetah"),
        ("2s@cheetah", "is in seconds, which depend on an engine and a link: write 2s@cheetah/wan"),
        ("2s@cheetah/moon", "unknown network 'moon'"),
        ("2s@delfi/wan", "unknown protocol 'delfi'; did you mean 'delphi'"),
        ("20ms@delphi/wan", "that this network costs with a single ReLU; give more"),
        ("2s@delphi:offline/wan", "counts the phase 'offline': write delphi:online, or delphi for the preparation"),
        ("30MB@cryptflow2", "no budget in bytes can be kept under cryptflow2: not known are layers and truncations"),
    ],
)
def test_budgets_without_sense(refused, teacher, budget, reason):
    assert reason in refused("linearize", teacher, "--method", "snl", f"--budget={budget}", "--out", "x")


def test_only_a_budget_of_what_is_measured_is_measured(refused, teacher):
    measuring = ("linearize", teacher, "--method", "random", "--measure", "1", "--out", "x")
    assert "cannot be measured, for it is in share: write 10s@cheetah/wan" in refused(*measuring, "--budget", "10%")
    assert "delphi cannot be run here" in refused(*measuring, "--budget", "20s@delphi/wan")
    assert not Path("x").exists()


def test_what_is_not_given(refused, teacher):
    assert "name a method and a budget" in refused("linearize", teacher, "--out", "x")
    assert "names no task" in refused("train", "resnet8", "--out", "x")
    assert "names no model" in refused("train", "--task", "digits", "--out", "x")
    assert "has no value; write key=value" in refused("train", "resnet8", "--set", "seed", "--out", "x")
    assert "seed is 'x', expected a int" in refused(
        "train", "resnet8", "--task", "digits", "--set", "seed=x", "--out", "x"
    )
    assert "cannot read the recipe none.toml" in refused("train", "--recipe", "none.toml", "--out", "x")


def test_click_errors_leave_with_two_as_well(cli):
    assert cli("evaluate").code == 2
    assert cli("run", "x", "--images", "0").code == 2
    assert cli("nonsense").code == 2


def test_data_that_is_missing_or_damaged(refused):
    line = refused("train", "resnet8", "--task", "cifar10", "--data", "empty", "--out", "x")
    assert re.search(r"empty/cifar-10-batches-py.*--download", line)
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    batch = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [k % 10 for k in range(20)]}
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    whole = pickle.dumps({b"label_names": [b"%d" % k for k in range(10)]}, protocol=2)
    (folder / "batches.meta").write_bytes(whole)
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2)[:500])
    assert "data_batch_1" in refused("train", "resnet8", "--task", "cifar10", "--out", "x")
    raw = Path("data/FashionMNIST/raw")
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x03nonsense"))
    assert "ubyte" in refused("train", "resnet8", "--task", "fashion-mnist", "--out", "x")


def test_checkpoints_that_are_not_whole(refused, teacher):
    assert "no checkpoint at nowhere" in refused("evaluate", "nowhere")
    file = teacher / FILE
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    assert "cut short or damaged" in refused("run", teacher)
    bad = bytearray(good)
    bad[-100] ^= 1
    file.write_bytes(bad)
    assert "has been altered" in refused("linearize", teacher, "--method", "snl", "--budget", "10%", "--out", "x")
    file.write_bytes(good)
    assert "for task 'cifar10', the network given is of 'digits'" in refused(
        "linearize", teacher, "--method", "snl", "--budget", "10%", "--set", "task=cifar10", "--out", "x"
    )
    assert "for model 'resnet20', the network given is of 'resnet8:width=8'" in refused(
        "linearize", teacher, "--method", "snl", "--budget", "10%", "--set", "model=resnet20", "--out", "x"
    )


def test_a_finished_folder_is_not_overwritten(refused, teacher):
    before = (teacher / FILE).read_bytes()
    assert "holds a finished checkpoint; choose another --out" in refused(
        "train", "resnet8", "--task", "digits", "--out", teacher
    )
    assert (teacher / FILE).read_bytes() == before


def test_a_linearized_network_is_no_teacher(refused, cli, teacher):
    assert cli("linearize", teacher, "--method", "random", "--budget", "10%", *SHORT, "--out", "small").code == 0
    assert "linearized already" in refused("linearize", "small", "--method", "snl", "--budget", "5%", "--out", "x")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("DataFlow", r"cannot be traced|depends on"),
        ("NoGradients", r"mine\.py:\d+ .* without gradients"),
    ],
)
def test_models_that_cannot_be_traced(refused, cli, network, reason):
    source = Path(zoo.__file__).read_text()
    Path("mine.py").write_text(f"{source}\ndef build():\n    return {network}()\n")
    if network == "DataFlow":
        reach_secure_run(cli)
        assert re.search(reason, refused("run", "made"))
    else:
        assert re.search(reason, refused("sites", "mine.py:build", "--task", "cifar10"))


def reach_secure_run(cli):
    """Save ``mine.py:build`` as a checkpoint of three classes of 3x8x8 images with data to match."""
    from reluctant.checkpoints import Origin, save_checkpoint
    from reluctant.models import ModelSpec

    spec = ModelSpec.parse("mine.py:build")
    images = Path("images")
    rng = np.random.default_rng(0)
    from PIL import Image

    for split in ("train", "test"):
        for label in range(5):
            (images / split / str(label)).mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / str(label) / f"{index}.png")
    task = f"folder:{images.resolve()}@8"
    save_checkpoint(Path("made"), spec.build(5, 3), Origin(str(spec), task, 5, (3, 8, 8)))


def test_images_of_another_shape(refused, teacher):
    """The network was made for another task than the one its folder says."""
    from reluctant.checkpoints import Origin, load_checkpoint, save_checkpoint

    dense = load_checkpoint(teacher).dense
    shutil.rmtree(teacher)
    save_checkpoint(teacher, dense, Origin("resnet8:width=8", "digits", 10, (1, 12, 12)))
    assert "images (1, 12, 12), task digits has 10 of (1, 8, 8)" in refused("run", teacher)


def test_users_files_that_fail(refused):
    assert "mine.py" in refused("sites", "mine.py:build")
    Path("mine.py").write_text("import torch\n\ndef bild():\n    return torch.nn.ReLU()\n")
    assert "did you mean 'bild'" in refused("sites", "mine.py:build")
    Path("mine.py").write_text("x = 1 / 0\n")
    assert "mine.py:1: ZeroDivisionError" in refused("sites", "mine.py:build")


def test_reports_without_records(refused):
    assert "no records" in refused("report", ".")
    Path("bad.record.json").write_text("{}")
    assert "bad.record.json" in refused("report", ".")


def test_impossible_settings(refused):
    assert "epochs is 0" in refused("train", "resnet8", "--task", "digits", "--epochs", "0", "--out", "x")
    assert "unknown device 'tpu'" in refused("train", "resnet8", "--task", "digits", "--device", "tpu", "--out", "x")


def test_a_training_that_diverges_says_where_and_what_to_do(cli):
    ended = cli("train", "resnet8:width=4", "--task", "digits", "--set", "training.lr=1e6", "--out", "x")
    assert ended.code == 2
    assert re.fullmatch(
        r"error: train diverged at epoch \d+, step \d+: (loss is nan|loss is inf|weights are not finite); "
        r"lower the learning rate or bound the gradient \(clip\)\n",
        ended.err,
    )
    assert not list(Path("x").glob("*.safetensors"))

"""Which stages' ReLUs matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reluctant.errors import CheckpointError, UsageError
from reluctant.experiment import Machine
from reluctant.recipe import Recipe
from reluctant.searches.base import Study
from reluctant.searches.criticality import Criticality
from reluctant.studies import run_search
from reluctant.training import Training

SHORT = Recipe(
    task="digits",
    model="resnet8:width=4",
    training=Training(epochs=2, batch=64),
    finetune=Training(epochs=1, batch=64, lr=0.02),
)


class Interrupting:
    """Breaks off in the third step of a stage."""

    def __init__(self, stage):
        self.stage = stage

    def __call__(self, stage, done, total, **metrics):
        if stage.startswith(self.stage) and done == 3:
            raise KeyboardInterrupt


def rows(*pairs):
    return [{"stage": k, "relus": relus, "val": val} for k, (relus, val) in enumerate(pairs, start=1)]


def test_criticality_by_hand():
    found = Criticality(exponent=0.5).rank(rows((400, 0.70), (100, 0.60), (25, 0.55)), 1000)
    assert [row["criticality"] for row in found["stages"]] == pytest.approx([0.15 / 20, 0.05 / 10, 0.0])
    assert found["order"] == [1, 2, 3]
    assert found["unsure"] == []  # five points of 1,000 images are 2.3 deviations
    assert Criticality(exponent=0.5).rank(rows((400, 0.70), (100, 0.60), (25, 0.56)), 1000)["unsure"] == [[2, 3]]


def test_the_usual_order_of_resnet18_comes_out_where_its_accuracies_say_so():
    counts = (262_144, 131_072, 65_536, 32_768)
    found = Criticality().rank(rows(*zip(counts, (0.50, 0.62, 0.66, 0.55), strict=True)), 5000)
    assert found["order"] == [3, 2, 4, 1]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=2, max_size=5), st.integers(2, 1000))
@settings(max_examples=50, deadline=None)
def test_the_order_does_not_depend_on_the_unit_of_relus(pairs, unit):
    """Up to ties, which rounding may break."""
    one, other = (Criticality().rank(rows(*((relus * by, val) for relus, val in pairs)), 100) for by in (1, unit))
    values = {row["stage"]: row["criticality"] for row in one["stages"]}
    assert [values[k] for k in one["order"]] == pytest.approx([values[k] for k in other["order"]])


def test_a_search_goes_on_where_it_stopped(tmp_path):
    """Every network is trained once; the answer is that of a search that was not interrupted."""
    whole = run_search(Criticality(), SHORT, tmp_path / "whole", Machine(device="cpu"))
    assert sorted(whole["order"]) == [1, 2, 3]
    assert [row["relus"] for row in whole["stages"]] == [512, 256, 128]
    for stage in ("dense: train", "only-stage-2: train"):
        with pytest.raises(KeyboardInterrupt):
            run_search(Criticality(), SHORT, tmp_path / "sliced", Machine(device="cpu"), progress=Interrupting(stage))
    found = run_search(Criticality(), SHORT, tmp_path / "sliced", Machine(device="cpu"), progress=Interrupting("dense"))
    assert found == whole
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sliced").rglob("*")}
    assert run_search(Criticality(), SHORT, tmp_path / "sliced", Machine(device="cpu")) == whole
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "sliced").rglob("*")}
    with pytest.raises(UsageError, match="other settings"):
        run_search(Criticality(exponent=0.0), SHORT, tmp_path / "sliced", Machine(device="cpu"))


def test_a_study_knows_its_networks(tmp_path, few_digits, fabric):
    """A name is for one network with one training."""
    short = Training(epochs=1, batch=64)
    study = Study(few_digits, "resnet8:width=4", short, short, 0, fabric, tmp_path, lambda *_, **__: None)
    network = study.build(study.model)
    trained = study.trained("a", network, short)
    again = study.trained("a", study.build(study.model), short)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["train.metrics.jsonl", "trained.state"]
    with pytest.raises(CheckpointError, match="another network or other settings"):
        study.trained("a", network, Training(epochs=2, batch=64))
    asked = []
    assert [study.noted("b", lambda: asked.append(1) or {"x": 1}) for _ in range(2)] == [{"x": 1}] * 2
    assert asked == [1]


def test_a_network_without_stages_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    recipe = Recipe(task="digits", model=f"{tmp_path / 'mine.py'}:build")
    with pytest.raises(UsageError, match="has no stages to compare"):
        run_search(Criticality(), recipe, tmp_path / "out", Machine(device="cpu"))

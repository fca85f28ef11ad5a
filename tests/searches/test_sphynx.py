"""Sphynx's search: its space, what is derived from it, which images move what, and that it can be interrupted."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from reluctant.designs.cells import OPERATIONS, Edge, operation, read_cell
from reluctant.errors import Paused, ShapeError, UsageError
from reluctant.experiment import Machine
from reluctant.loop import read_state
from reluctant.models import ModelSpec
from reluctant.progress import TimeLimit, silent
from reluctant.recipe import Recipe
from reluctant.searches.base import Study
from reluctant.searches.sphynx import SphynxSearch, halves
from reluctant.searches.supernet import EDGES, MixedEdge, Skeletons, Supernet, derive, pairs
from reluctant.sites import find_sites
from reluctant.studies import run_search
from reluctant.training import Training

START = "sphynx:width=2,cells=4,reductions=0-1"
SMALL = SphynxSearch(
    search_cells=3,
    search_width=2,
    cell_epochs=2,
    place_epochs=2,
    cell_batch=64,
    place_batch=32,
    architecture_lr=0.1,
)


@pytest.fixture
def make_study(without_test, fabric, tmp_path):
    """A study of the few digits whose test split cannot be read, in a folder of its own."""

    def make(name, task=without_test, progress=silent):
        return Study(task, START, Training(), Training(), 3, fabric, tmp_path / name, progress)

    return make


def test_the_space_has_the_edges_and_operations_of_the_paper():
    net = Supernet(8, 4, 10, 3)
    assert EDGES == 2 + 3 + 4 + 5
    assert list(OPERATIONS) == ["s", "a3", "c3", "c5", "d3", "d5"]
    assert net.normal.shape == net.reduction.shape == (14, 7)  # the seventh is no edge
    assert [cell.reduces for cell in net.cells] == [place in (2, 5) for place in range(8)]
    for cell in net.cells:
        edges = [edge for edge in cell.modules() if isinstance(edge, MixedEdge)]
        assert len(edges) == 14
        assert all(len(edge.operations) == 6 for edge in edges)
        assert all(norm.weight is None for norm in cell.modules() if isinstance(norm, nn.BatchNorm2d))
        assert [len(node) for node in cell.nodes] == [2, 3, 4, 5]
    assert net.stem[0].out_channels == 12
    assert [cell.output[1].out_channels for cell in net.cells] == [4, 4, 8, 8, 8, 16, 16, 16]
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_its_relus_come_before_the_compression():
    net = Supernet(3, 4, 10, 1)
    sites = find_sites(net, torch.zeros(1, 1, 8, 8))
    assert [site.shape for site in sites.values()] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_mixed_edge_is_the_weighted_sum_of_its_operations(stride):
    edge, x = MixedEdge(4, stride).eval(), torch.rand(2, 4, 8, 8)
    for which, each in enumerate(edge.operations):
        torch.testing.assert_close(edge(x, torch.eye(7)[which]), each(x))
    assert edge(x, torch.eye(7)[6]).abs().max() == 0
    shares = torch.rand(7)
    torch.testing.assert_close(edge(x, shares), sum(s * each(x) for s, each in zip(shares, edge.operations)))  # noqa: B905


@pytest.mark.parametrize("code", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_keep_channels_and_have_no_relu(code, stride):
    module = operation(code, 4, stride)
    assert module(torch.rand(2, 4, 8, 8)).shape == (2, 4, 8 // stride, 8 // stride)
    assert not any(isinstance(part, nn.ReLU) for part in module.modules())


def test_a_cell_is_derived_as_by_hand():
    """Of each node the two edges with the strongest operation, the stronger first."""
    logits = torch.zeros(EDGES, 7)
    s, a3, c3, c5, d3, d5, none = range(7)
    logits[0, c3], logits[1, d5] = 1.0, 2.0  # node 2: both edges there are
    logits[2, a3], logits[3, s], logits[4, c5] = 3.0, 1.0, 2.0  # node 3: from 0 and from 2
    logits[6, d3], logits[8, s] = 1.0, 0.5  # node 4: from 1 and from 3
    logits[12, s], logits[13, c5] = 1.0, 1.5  # node 5: from 3 and from 4
    assert derive(logits) == "1d5.0c3-0a3.2c5-1d3.3s-4c5.3s"
    logits[13, none] = 9.0  # what is left of the last edge is next to nothing: any other is stronger
    assert read_cell(derive(logits), "")[3][0] == Edge(3, "s")
    assert 4 not in [edge.source for edge in read_cell(derive(logits), "")[3]]


def test_no_edge_is_never_what_is_taken():
    logits = torch.zeros(EDGES, 7)
    logits[:, 6] = 5.0
    logits[:, 2] = 1.0
    assert {edge.operation for node in read_cell(derive(logits), "") for edge in node} == {"c3"}


def test_where_reductions_may_be():
    assert len(pairs(10)) == 21
    assert pairs(10)[0] == (0, 1)
    assert pairs(10)[-1] == (5, 6)
    assert pairs(5) == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    for name in ("25k", "30k", "40k", "50k"):
        released = ModelSpec.parse(f"sphynx-cifar100-{name}").design
        assert released.reductions in pairs(released.cells)


def test_skeletons_share_the_stem_alone():
    start = ModelSpec.parse(START).design
    designs = [start.changed({"reductions": pair}) for pair in pairs(4)]
    model = Skeletons(designs, 10, 1)
    one, other = ({id(p) for p in network.parameters()} for network in model.networks[:2])
    assert one & other == {id(p) for p in model.networks[0].stem.parameters()}
    assert len(model.logits) == len(pairs(4)) == 3


def test_the_halves_are_of_the_training_split_and_share_no_image(few_digits):
    split = replace(few_digits.train, labels=torch.arange(len(few_digits.train)))  # each image its own label
    ours, theirs = halves(split, 0)
    assert len(ours) == len(theirs) == 128
    assert sorted([*ours.labels.tolist(), *theirs.labels.tolist()]) == list(range(256))
    assert torch.equal(ours.images, split.images[ours.labels])
    assert not torch.equal(halves(split, 1)[0].labels, ours.labels)


def searched(search, study, which):
    """What one of the two searches found, and the weights it ended with."""
    start = ModelSpec.parse(START).design
    found = search._find_cells(study) if which == "cells" else search._find_places(study, start)
    return found, read_state(study.directory / which / f"{which}.state")["kept/model"]


@pytest.mark.parametrize(("which", "logits"), [("cells", ["normal", "reduction"]), ("places", ["logits"])])
def test_labels_of_the_one_half_move_weights_and_those_of_the_other_the_architecture(
    make_study, without_test, which, logits
):
    """With labels of the other half changed, the architecture ends elsewhere, and without its steps nothing does."""
    moved = replace(SMALL, cell_epochs=1, place_epochs=1)
    fixed = replace(moved, architecture_lr=1e-30)
    _, plain = searched(fixed, make_study("a"), which)
    changed = object.__new__(type(without_test))
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    labels = without_test.train.labels.clone()
    theirs = halves(replace(without_test.train, labels=torch.arange(256)), 3)[1].labels
    labels[theirs] = labels[order[:128]]
    changed.__dict__.update(vars(without_test) | {"train": replace(without_test.train, labels=labels)})
    _, same = searched(fixed, make_study("b", changed), which)
    assert all(torch.equal(same[name], value) for name, value in plain.items())
    _, one = searched(moved, make_study("c"), which)
    _, other = searched(moved, make_study("d", changed), which)
    for name in logits:
        assert not torch.equal(one[name], other[name])
        assert (one[name] - plain[name]).abs().max() > 0.05


class Clock:
    """A time limit whose seconds are steps: it ends after ``steps`` of them."""

    def __new__(cls, steps):
        limit = TimeLimit(1e6)
        taken = itertools.count(1)

        def count(*_, **__):
            if next(taken) == steps:
                limit.seconds = 0.0

        limit.progress = count
        return limit


def losses(study):
    """What was noted of all epochs."""
    files = [study.directory / name / f"{name}.metrics.jsonl" for name in ("cells", "places")]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_in_slices_or_killed_it_ends_bit_for_bit_as_in_one_go(make_study):
    """And it ends with a design that has one ReLU a cell."""
    whole = make_study("whole")
    found = SMALL.run(whole)
    assert len(losses(whole)) == 2 + 2
    design = ModelSpec.parse(found["model"]).design
    assert (design.width, design.cells) == (2, 4)
    assert (design.normal_cell, design.reduction_cell) == (found["normal_cell"], found["reduction_cell"])
    assert design.reductions == tuple(found["reductions"])
    assert sum(share for *_, share in found["places"]) == pytest.approx(1)
    sites = find_sites(whole.build(found["model"]), whole.task.example)
    assert [site.relus for site in sites.values()] == [2 * 8 * 8] * 4
    assert sorted(path.name for path in (whole.directory / "cells").iterdir()) == ["cells.metrics.jsonl", "found.json"]

    pauses = []
    for _ in range(20):
        try:
            again = SMALL.run(make_study("sliced", progress=Clock(3)))
        except Paused as pause:
            pauses.append((pause.stage, pause.done))
        else:
            break
    assert pauses[0] == ("cells", 3)
    assert ("places", 2) in pauses
    assert again == found
    assert losses(make_study("sliced")) == losses(whole)

    for stage, step in (("cells", 3), ("places", 6)):

        def kill(at, done, total, stage=stage, step=step, **metrics):
            if (at, done) == (stage, step):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            SMALL.run(make_study("killed", progress=kill))
    assert SMALL.run(make_study("killed")) == found
    assert losses(make_study("killed")) == losses(whole)


def test_each_search_alone(make_study):
    """What is not searched stays as in the network it starts from."""
    start = ModelSpec.parse(START).design
    cells = replace(SMALL, place_epochs=0, cell_epochs=1).run(make_study("cells"))
    assert ModelSpec.parse(cells["model"]).design.reductions == start.reductions
    assert "places" not in cells
    places = replace(SMALL, cell_epochs=0, place_epochs=1).run(make_study("places"))
    assert ModelSpec.parse(places["model"]).design.normal_cell == start.normal_cell
    assert "val" not in places
    text = SMALL.tell({**places, "task": "digits"})
    assert text.endswith(f"next: reluctant train {places['model']} --task digits --out ...")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("resnet8", UsageError, "search sphynx looks for the cells of a sphynx network, got resnet8; name one"),
        ("sphynx:stem=imagenet,width=4,reductions=none", ShapeError, "a multiple of 32, got 8"),
        ("sphynx:cells=1,reductions=none", UsageError, "expected rising places among the cells, 0 to 0"),
    ],
)
def test_what_it_cannot_work_on_is_refused_before_anything_is_written(tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        run_search(SMALL, Recipe(task="digits", model=model), tmp_path / "out", Machine(device="cpu"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_cells": 2}, "sphynx.search_cells is 2, expected 3 or more"),
        ({"cell_epochs": 0, "place_epochs": 0}, "both 0: nothing is searched"),
        ({"temperature_end": 0}, "sphynx.temperature_end is 0.*above zero"),
    ],
)
def test_settings_of_no_search_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        SphynxSearch().changed(settings)

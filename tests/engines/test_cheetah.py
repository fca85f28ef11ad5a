"""Real private inference between two processes, against the twin."""

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small import masked_small

from reluctant.costs.model import CostModel
from reluctant.engines.cheetah import Cheetah
from reluctant.engines.meeting import free_ports
from reluctant.engines.parties import Place, query, serve
from reluctant.engines.settings import Settings
from reluctant.engines.twin import Twin
from reluctant.errors import UsageError
from reluctant.models.resnet import resnet8
from reluctant.program.lower import lower
from reluctant.surrogates import Affine, Identity, Reciprocal


@pytest.fixture(scope="module")
def runs(small_images):
    """The dense network and one with 10 % and none of its ReLUs, four images in two batches each."""
    found = {}
    for name, kept in (("dense", (1.0, 1.0)), ("reduced", (0.1, 0.0))):
        program = lower(masked_small(kept))
        found[name] = program, Cheetah().run(program, small_images, batch=2), Twin().run(program, small_images)
    return found


@pytest.mark.secure
@pytest.mark.parametrize("name", ["dense", "reduced"])
def test_answers_are_those_of_the_twin(runs, name):
    _, run, twin = runs[name]
    assert run.outputs.shape == (4, 5)
    assert np.abs(run.outputs - twin.outputs).max() < 1e-3
    assert (run.outputs.argmax(1) == twin.outputs.argmax(1)).all()


@pytest.mark.secure
@pytest.mark.parametrize("name", ["dense", "reduced"])
def test_comparisons_are_the_kept_relus_of_all_images(runs, name):
    program, run, twin = runs[name]
    assert run.comparisons == twin.comparisons == 4 * program.kept
    assert [(site.name, site.comparisons) for site in run.by_site] == [(s.name, 4 * s.kept) for s in program.sites]


@pytest.mark.secure
def test_what_a_run_cost(runs):
    """The parties themselves check that one's bytes sent are the other's received; a run that ends has passed it."""
    _, run, _ = runs["dense"]
    assert run.processes == 2
    assert (run.images, run.batch, run.fraction_bits) == (4, 2, 18)
    assert 0 < sum(s.comparison_bytes + s.surrogate_bytes for s in run.by_site) < run.bytes
    assert 0 < sum(site.messages for site in run.by_site) < run.messages
    assert 0 < sum(site.seconds for site in run.by_site) < run.seconds
    assert run.setup_bytes > 10_000_000  # homomorphic keys and the first oblivious transfers
    assert run.setup_seconds > 0
    assert 3e8 < run.memory < 4e9


@pytest.mark.secure
def test_bytes_of_comparisons_fall_with_the_mask(runs):
    (dense_program, dense, _), (program, run, _) = runs["dense"], runs["reduced"]
    full, kept = dense.by_site[0], run.by_site[0]
    cut = 1 - program.sites[0].kept / dense_program.sites[0].kept
    assert full.comparison_bytes - kept.comparison_bytes > 0.98 * cut * full.comparison_bytes
    assert kept.surrogate_bytes == 0


@pytest.mark.secure
def test_site_without_relus_costs_nothing(runs):
    _, run, _ = runs["reduced"]
    last = run.by_site[1]
    assert (last.kept, last.comparisons, last.comparison_bytes, last.surrogate_bytes, last.messages) == (0, 0, 0, 0, 0)


@pytest.mark.secure
def test_one_image_costs_the_same_whenever_it_comes(runs, small_images):
    """Set-up is apart: two batches cost twice one."""
    program, four, _ = runs["reduced"]
    two = Cheetah().run(program, small_images[:2], batch=2)
    assert four.bytes == pytest.approx(2 * two.bytes, rel=0.01)
    assert four.messages == 2 * two.messages
    assert four.comparisons == 2 * two.comparisons


@pytest.mark.secure
def test_private_slopes_are_paid_for_and_nothing_is_left_behind(small_images, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "work")
    program, seen = lower(masked_small((0.5, 0.5), Affine())), []
    run = Cheetah().run(program, small_images[:1], progress=lambda *step, **_: seen.append(step))
    assert np.abs(run.outputs - Twin().run(program, small_images[:1]).outputs).max() < 1e-3
    assert all(site.surrogate_bytes > 0 for site in run.by_site)
    assert seen[-1] == ("secure: run", 1, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert Path.cwd() == tmp_path / "work"


@pytest.mark.secure
def test_reciprocal_slopes_cost_nothing(small_images):
    """Shortcuts of both kinds, a site without ReLUs and one with all. The size of ciphertexts varies a little."""
    kept = (0.1, 0.1, 0.0, 1.0, 0.2, 0.1, 0.1)
    networks = {s.name: masked_small(kept, s, resnet8(5, 3, width=8)) for s in (Identity(), Reciprocal())}
    programs = {name: lower(network) for name, network in networks.items()}
    assert any(op.factors for op in programs["reciprocal"].activations())
    plain, run = (Cheetah().run(programs[name], small_images[:1]) for name in networks)
    assert run.comparisons == plain.comparisons == programs["reciprocal"].kept
    assert run.messages == plain.messages
    assert run.bytes == pytest.approx(plain.bytes, rel=1e-3)
    for site, other in zip(run.by_site, plain.by_site, strict=True):
        assert (site.comparison_bytes, site.messages) == (other.comparison_bytes, other.messages)
        assert site.surrogate_bytes == 0
    with torch.no_grad():
        expected = networks["reciprocal"](torch.from_numpy(small_images[:1])).numpy()
    for answer in (Twin().run(programs["reciprocal"], small_images[:1]).outputs, expected):
        assert np.abs(run.outputs - answer).max() < 1e-3
        assert run.outputs.argmax() == answer.argmax()


@pytest.mark.secure
def test_transfers_are_chosen_by_predicted_seconds(runs, small_images):
    """One small batch does not pay for Ferret's set-up; a comparison then costs nine times the bytes, as predicted."""
    program, ferret, twin = runs["dense"]
    run = Cheetah(transfers="auto").run(program, small_images, batch=2)
    assert (ferret.transfers, run.transfers) == ("ferret", "softspoken")
    assert np.abs(run.outputs - twin.outputs).max() < 1e-3
    assert run.comparisons == ferret.comparisons
    assert run.setup_bytes < ferret.setup_bytes
    predicted = CostModel.load("cheetah").with_softspoken().predict(program, 4, 2)
    assert run.bytes == pytest.approx(predicted.bytes, rel=0.02)
    compared = sum(site.comparison_bytes for site in run.by_site)
    assert compared == pytest.approx(sum(site.comparison_bytes for site in predicted.by_site), rel=0.05)


def test_transfers_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="unknown transfers 'iknp' for cheetah; expected ferret or softspoken or auto"):
        Cheetah(transfers="iknp")


@pytest.mark.secure
def test_two_machines(runs, small_images):
    """Each party started on its own; both count the same, only the client learns the answers."""
    program, _, twin = runs["reduced"]
    server, client = (f"127.0.0.1:{port}" for port in free_ports(2))
    served = []
    thread = threading.Thread(
        target=lambda: served.append(serve(program, Place(listen=server, peer=client), Settings(18)))
    )
    thread.start()
    run = query(small_images, Place(listen=client, peer=server), Settings(18))
    thread.join(20)
    assert np.abs(run.outputs - twin.outputs).max() < 1e-3
    assert served[0].outputs.shape == (0, 5)
    for name in ("images", "batch", "comparisons", "bytes", "messages", "setup_bytes"):
        assert getattr(served[0], name) == getattr(run, name)


def test_the_parties_need_no_torch():
    """A party's process must not spend seconds and memory on a library that it has no use for."""
    import subprocess
    import sys

    code = "import sys, reluctant.engines.party; sys.exit('torch' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0

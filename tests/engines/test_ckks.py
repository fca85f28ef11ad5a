"""Encrypted inference between two processes, and what is secure about its keys."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small import masked_small, parties
from test_failures import Killer
from torch import nn

from reluctant.costs.ckks import MOST_BITS, levels
from reluctant.engines.ckks import CKKS
from reluctant.engines.ckks_session import Link
from reluctant.engines.homomorphic import Evaluator, KeyHolder, Scheme
from reluctant.engines.packing import Parameters, layers, parameters_of
from reluctant.errors import EngineError, ShapeError, UnsupportedOperation, UsageError
from reluctant.program.collapse import straighten
from reluctant.program.lower import lower
from reluctant.recording import as_records
from reluctant.secure import secure_run
from reluctant.surrogates import Affine, Hermite, Identity, Quadratic

secure = pytest.mark.secure


def digits_network(surrogate):
    """Two convolutions for 1x8x8 images, with random weights and nothing kept at its two sites."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)]
    model = nn.Sequential(*parts, nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    return masked_small((0.0, 0.0), surrogate, model, (1, 8, 8))


@pytest.fixture(scope="module")
def polynomial():
    """A polynomial network, and its secure run on four images in two batches."""
    masked = digits_network(Hermite())
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return masked, secure_run(masked, images, engine=CKKS(), batch=2)


@secure
def test_answers_are_those_of_torch(polynomial):
    _, done = polynomial
    assert done.run.outputs.shape == (4, 10)
    assert np.abs(done.run.outputs - done.floats).max() < 1e-4 < np.abs(done.floats).max()
    assert done.argmax_equal_float == 4
    assert (done.twin, done.argmax_equal_twin, done.max_abs_error_twin) == (None, None, None)


@secure
def test_what_a_run_cost(polynomial):
    """The parties check themselves that one's bytes sent are the other's received."""
    masked, done = polynomial
    run = done.run
    assert (run.processes, run.images, run.batch, run.comparisons, run.fraction_bits) == (2, 4, 2, 0, 40)
    assert run.messages == 4  # a ciphertext there and one back, twice
    assert 2 * 500_000 < run.bytes < 2 * 1_500_000
    assert 5_000_000 < run.setup_bytes < 30_000_000
    assert [(site.name, site.kept) for site in run.by_site] == [(name, 0) for name in masked.sites]
    assert 0 < sum(site.seconds for site in run.by_site) < run.seconds
    assert 5e7 < run.memory < 2e9


@secure
def test_its_record_says_what_it_was_compared_with(polynomial):
    (record,) = as_records([polynomial[1]])
    cost = record.secure["linearized"]
    assert cost["argmax_equal_float"] == 4
    assert "argmax_equal_twin" not in cost
    assert "masks of kept ReLUs" not in record.secure["public"]


@secure
@pytest.mark.parametrize("network", ["affine", "shortcut"])
def test_other_shapes_of_networks(network, small_images):
    """One affine map takes one level; a shortcut is a sum of levels; squares may be far smaller than lines, or 0."""
    masked = masked_small((0.0, 0.0), Identity() if network == "affine" else Quadratic())
    if network == "shortcut":
        for activation in masked.masked():
            activation.c2.data[:2] = torch.tensor([0.0, 1e-6]).reshape(2, 1, 1)
    program = lower(masked)
    taken = 1 if network == "affine" else 5
    assert parameters_of(layers(straighten(program))).levels == levels(program).total == taken
    run = CKKS().run(program, small_images)
    with torch.no_grad():
        expected = masked(torch.from_numpy(small_images)).numpy()
    assert np.abs(run.outputs - expected).max() < 1e-4


@secure
def test_imitated_link(small_images):
    """All of it goes through the relay: it cannot be faster than the link."""
    masked = masked_small((0.0, 0.0))
    run = secure_run(masked, torch.from_numpy(small_images[:1]), engine="ckks", network="8mbps/300ms").run
    assert run.messages == 2
    assert run.seconds > 0.3 + 8 * run.bytes / 8e6
    assert run.setup_seconds > 0.3 + 8 * (run.setup_bytes - 100_000) / 8e6


@secure
def test_a_secret_key_is_no_evaluation_key(tmp_path):
    """What the server loads is checked to be what it may have."""
    scheme = Scheme(Parameters(8192, 1, 64))
    holder = KeyHolder(scheme)
    keys = tmp_path / "relin", tmp_path / "galois"
    holder.save_evaluation_keys(*keys)
    Evaluator(scheme, *keys)
    holder._generator.secret_key().save(str(tmp_path / "secret"))
    for given in ((tmp_path / "secret", keys[1]), (keys[0], tmp_path / "secret")):
        with pytest.raises(EngineError, match="Keys of these parameters is none"):
            Evaluator(scheme, *given)
    with pytest.raises(EngineError, match="not those that the rotations and products need"):
        Evaluator(scheme, keys[0], keys[0])
    with pytest.raises(EngineError, match="Keys of these parameters is none"):
        Evaluator(Scheme(Parameters(16384, 5, 64)), *keys)


@secure
def test_no_key_but_the_public_ones_leaves_the_client(tmp_path, monkeypatch):
    """All that the client writes or sends: two evaluation keys, ciphertexts, JSON. None of it decrypts."""
    scheme = Scheme(Parameters(8192, 1, 64))
    holder = KeyHolder(scheme)
    holder.save_evaluation_keys(tmp_path / "relin", tmp_path / "galois")
    holder.encrypt(np.ones((1, 8), np.float32), tmp_path / "ciphertext")
    for name in ("relin", "galois", "ciphertext"):
        with pytest.raises(EngineError, match="SecretKey of these parameters is none"):
            scheme.load("SecretKey", tmp_path / name)
    assert np.abs(holder.decrypt(tmp_path / "ciphertext", 8, 1) - 1).max() < 1e-5
    assert np.abs(KeyHolder(scheme).decrypt(tmp_path / "ciphertext", 8, 1) - 1).max() > 1


def test_our_table_of_secure_sizes_is_that_of_seal():
    from tenseal import sealapi as seal

    for ring, most in MOST_BITS.items():
        assert seal.CoeffModulus.MaxBitCount(ring, seal.SEC_LEVEL_TYPE.TC128) == most


@pytest.mark.parametrize(("ring", "levels", "width"), [(8192, 3, 64), (16384, 8, 64), (4096, 1, 64), (8192, 0, 64)])
def test_parameters_that_are_not_secure_are_refused(ring, levels, width):
    with pytest.raises(UsageError, match="is not 128-bit secure"):
        Parameters(ring, levels, width)


def test_the_smallest_ring_that_holds_it_is_taken():
    assert [Parameters.smallest(levels, 300).ring for levels in (1, 2, 3, 7, 8, 19)] == [8192] * 2 + [16384] * 2 + [
        32768
    ] * 2
    assert Parameters.smallest(1, 5000).ring == 16384
    assert Parameters.smallest(5, 300) == Parameters(16384, 5, 512)
    with pytest.raises(UnsupportedOperation, match="takes 20 levels, CKKS has at most 19"):
        Parameters.smallest(20, 300)
    with pytest.raises(UnsupportedOperation, match="20,000 values at a place; CKKS has at most 16,384 slots"):
        Parameters.smallest(1, 20_000)


def test_what_is_no_polynomial_is_refused_before_anything_starts(small_images, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UnsupportedOperation, match=r"site :relu#2 keeps 64 ReLUs; CKKS evaluates polynomials only"):
        CKKS().check(lower(masked_small((0.0, 0.25), Quadratic())))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(UnsupportedOperation, match="is max-pooling; CKKS evaluates polynomials only"):
        CKKS().check(lower(masked_small((0.0,), Quadratic(), pooled)))
    program = lower(masked_small((0.0, 0.0), Affine()))
    with pytest.raises(ShapeError, match=r"images have the shape \(4, 3, 8\)"):
        CKKS().run(program, small_images[..., 0])
    with pytest.raises(UsageError, match="batch is 99; 16 images of this network fit into a ciphertext"):
        CKKS().run(program, small_images, batch=99)


def test_too_deep_a_network_is_refused():
    deep = nn.Sequential(
        *[part for _ in range(10) for part in (nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())], nn.Flatten()
    )
    masked = masked_small((0.0,) * 10, Quadratic(), deep, (1, 8, 8))
    with pytest.raises(UnsupportedOperation, match="takes 21 levels, CKKS has at most 19"):
        CKKS().check(lower(masked))


def test_without_tenseal_it_says_how_to_install_it(small_program, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "reluctant\[fhe\]"'):
        CKKS().check(small_program)


@secure
@pytest.mark.parametrize("role", ["server", "client"])
def test_killed_party_stops_the_other(role):
    killer = Killer(role)
    images = np.zeros((4, 1, 8, 8), np.float32)
    with pytest.raises(EngineError, match=f"the {role} was killed by SIGKILL"):
        CKKS().run(lower(digits_network(Quadratic())), images, batch=1, progress=killer)
    assert 0 < time.monotonic() - killer.at < 10
    assert parties() == {}


def test_a_message_that_is_too_long_is_not_read():
    here, there = socket.socketpair()
    with here, there:
        there.sendall((1 << 40).to_bytes(8, "big"))
        with pytest.raises(EngineError, match="announces a message of 1,099,511,627,776 bytes"):
            Link(here).recv(0)


def test_the_parties_need_no_torch():
    code = "import sys, reluctant.engines.ckks_session; sys.exit('torch' in sys.modules or 'tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0

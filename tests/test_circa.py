"""Circa's stochastic ReLU: its faults are as often as they should be, and where they should be."""

import pytest
import torch

from reluctant.circa import Circa, FaultyActivation, finetune_with_faults, largest_truncations, with_faults
from reluctant.errors import UsageError
from reluctant.mask import Mask
from reluctant.masked import attach
from reluctant.sites import find_sites
from reluctant.training import Training, evaluate, finetune

DRAWS = 200_000
VALUES = [0, 1, 500, 2000, 3000, 5000, 100_000, 2**17, 2**24, 2**28]


def wrong_share(circa, x, truncation):
    """Return how often the ReLU of x is wrong, from simulated shares."""
    generator = torch.Generator().manual_seed(truncation + x % 1000)
    signs = circa.signs(torch.full((DRAWS,), x), truncation, generator)
    return float((signs * x != max(x, 0)).double().mean())


@pytest.mark.parametrize("mode", ["poszero", "negpass"])
@pytest.mark.parametrize("truncation", [0, 8, 12, 18])
def test_shares_are_wrong_as_often_as_the_formula_says(mode, truncation):
    circa = Circa(mode=mode)
    for x in [*VALUES, *(-value for value in VALUES)]:
        expected = float(circa.fault_probability(torch.tensor(float(x), dtype=torch.float64), truncation))
        sigma = (expected * (1 - expected) / DRAWS) ** 0.5
        assert abs(wrong_share(circa, x, truncation) - expected) <= 3 * sigma + 1e-9, (x, expected)


def test_faults_as_computed_by_hand():
    """Section 4.3 of the notes on the paper: for k = 12, x = 500, 3000 and 5000; and 2^24 in a field of 31 bits."""
    x = torch.tensor([500.0, 3000.0, 5000.0, 2.0**24], dtype=torch.float64)
    found = Circa().fault_probability(x, 12).tolist()
    assert found == pytest.approx([0.878, 0.268, 0.0, 0.0078], abs=5e-4)
    found = Circa(mode="negpass").fault_probability(-x, 12).tolist()
    assert found == pytest.approx([0.878, 0.268, 0.0, 0.0078], abs=5e-4)
    assert Circa(mode="negpass").fault_probability(x, 12).tolist()[:3] == pytest.approx([0, 0, 0], abs=1e-5)


def test_expected_output_near_zero_is_a_parabola():
    """E[y | x] = x min(1, x / 2^k) under PosZero, which the simulated shares must show as well."""
    x = torch.linspace(1, 2**13, 9).long().repeat(DRAWS // 4, 1)
    y = (x * Circa().signs(x, 12, torch.Generator().manual_seed(0))).double().mean(0)
    expected = x[0] * (x[0] / 2**12).clamp(max=1)
    assert torch.allclose(y, expected.double(), atol=3 * 2**12 / (DRAWS // 4) ** 0.5, rtol=1e-3)


def test_gates():
    circa = Circa()
    assert circa.bits == 32
    assert (circa.gates(None), circa.gates(0), circa.gates(12), circa.gates(18)) == (253, 64, 52, 46)


@pytest.mark.parametrize(("settings", "words"), [
    ({"mode": "pos"}, "mode is 'pos', expected poszero or negpass"),
    ({"fraction_bits": 40}, "with 40 fraction bits"),
    ({"field": 1}, "field is 1"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UsageError, match=words):
        Circa(**settings)


@pytest.fixture
def half(trained, digits):
    """The trained network with every other ReLU gone."""
    masked = attach(trained, find_sites(trained, digits.example))
    torch.manual_seed(0)
    return masked.set_mask(Mask({name: torch.rand(site.shape) < 0.5 for name, site in masked.sites.items()})).eval()


@pytest.mark.parametrize("mode", ["poszero", "negpass"])
def test_module_makes_the_faults_of_the_shares_and_only_at_kept_relus(half, mode):
    activation, circa, truncation = half.masked()[0], Circa(mode=mode), 15
    z = torch.linspace(-1, 1, 400).repeat_interleave(50)[:, None, None, None].expand(-1, *activation.site.shape)
    torch.manual_seed(0)
    gate = FaultyActivation(activation, circa, truncation)
    y, keep = gate(z), activation.keep
    assert torch.equal(y[:, ~keep], z[:, ~keep])
    kept = z[:, keep]
    signs = circa.signs(circa.fixed(kept), truncation, torch.Generator().manual_seed(1))
    assert ((y[:, keep] == 0) | (y[:, keep] == kept)).all()
    found, expected = ((value != kept.relu()).double().mean(1) for value in (y[:, keep], signs * kept))
    sigma = (expected * (1 - expected) / kept.shape[1]).sqrt()
    assert ((found - expected).abs() <= 6 * sigma + 6 / kept.shape[1]).all()
    assert gate.seen == kept.numel()
    assert gate.faults == int((y[:, keep] != kept.relu()).sum()) > 1000


def test_gradient_is_that_of_the_sign_that_was_taken(half):
    activation = half.masked()[0]
    z = (torch.rand(8, *activation.site.shape) - 0.5).requires_grad_()
    y = FaultyActivation(activation, Circa(), 15)(z)
    y.sum().backward()
    taken = (y.detach() != 0) | ~activation.keep
    assert torch.equal(z.grad, taken.float())
    assert (y.detach()[:, activation.keep] == 0)[z.detach()[:, activation.keep] > 0].any()


def test_faults_end_with_the_block(half, digits):
    images, name = digits.images(50), next(iter(half.sites))
    with torch.no_grad():
        before = half(images)
        with with_faults(half, Circa(), dict.fromkeys(half.sites, 18)) as gates:
            assert not torch.equal(half(images), before)
            assert all(gate.faults > 0 for gate in gates.values())
        with with_faults(half, Circa(), {}):
            assert torch.equal(half(images), before)
        assert torch.equal(half(images), before)
    with (
        pytest.raises(UsageError, match=f"'nowhere' is no site of the model; its sites are {name}"),
        with_faults(half, Circa(), {"nowhere": 3}),
    ):
        pass


def test_truncations_cost_under_half_a_point_and_one_bit_more_does_not(half, digits, trained, fabric):
    half = finetune(half, digits, Training(epochs=2, lr=0.02, batch=64), teacher=trained, fabric=fabric)
    state = torch.random.get_rng_state()
    found = largest_truncations(half, digits, draws=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found == largest_truncations(half, digits, draws=1)
    assert found.exact == evaluate(half, digits, "val").accuracy
    assert found.accuracy > found.exact - 0.005
    assert [row.name for row in found.sites] == list(half.sites)
    assert all(row.alone > found.exact - 0.005 and row.truncation >= 8 for row in found.sites)
    assert all(row.fault_share > 0 for row in found.sites)
    assert found.gates == sum(row.kept * (64 - row.truncation) for row in found.sites) < found.gates_before / 4
    with with_faults(half, Circa(), {row.name: row.truncation + 4 for row in found.sites}):
        torch.manual_seed(0)
        assert evaluate(half, digits, "val").accuracy < found.exact - 0.005


def test_numbers_too_large_for_the_field_are_said(half, digits):
    with pytest.raises(UsageError, match="even without truncation: the numbers are large for a field of 2138816513"):
        largest_truncations(half, digits, Circa(fraction_bits=27), draws=1)


def test_finetuning_with_faults_wins_back_what_they_cost(half, digits, trained, fabric):
    circa, truncations = Circa(), dict.fromkeys(half.sites, 18)
    training = Training(epochs=3, lr=0.02, batch=64)
    plain = finetune(half, digits, training, teacher=trained, fabric=fabric)
    tuned = finetune_with_faults(half, digits, circa, truncations, training, teacher=trained, fabric=fabric)
    assert len(tuned.masked()) == len(half.masked())
    assert tuned.mask.digest == half.mask.digest
    found = {}
    for name, network in (("plain", plain), ("tuned", tuned)):
        with with_faults(network, circa, truncations):
            torch.manual_seed(0)
            found[name] = evaluate(network, digits, "val").accuracy
    assert found["tuned"] > found["plain"] + 0.05, found

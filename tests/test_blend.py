"""The arithmetic of a partly dropped ReLU: values, gradients, and what it keeps for the backward pass."""

import pytest
import torch

from reluctant.blend import BlendedReLU, KeptReLU


def draw(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("given_terms", [(), (0,), (1,), (0, 1), (2,), (0, 1, 2)])
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,)], ids=["all", "z", "m", "c"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 3)])
def test_blended_gradients(given_terms, wanted, shape):
    """Those of z, gates and coefficients, together and each alone: what nobody wants is not computed."""
    coefficients = [draw(*shape, seed=degree + 3) if degree in given_terms else None for degree in range(3)]
    arguments = [draw(2, 2, 3, 3), draw(2, 3, 3, seed=2), *coefficients]
    for place, argument in enumerate(arguments):
        if argument is not None and min(place, 2) not in wanted:
            arguments[place] = argument.detach()
    if any(argument is not None and argument.requires_grad for argument in arguments):
        assert torch.autograd.gradcheck(BlendedReLU.apply, tuple(arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_relu_and_its_gradient_are_those_of_where(dtype):
    z = draw(5, 2, 3, 3).to(dtype).detach().requires_grad_()
    keep = draw(2, 3, 3, seed=4) > 0
    y = KeptReLU.apply(z, keep)
    delta = draw(5, 2, 3, 3, seed=5).to(dtype)
    expected = torch.where(keep, z.relu(), z)
    assert torch.equal(y, expected)
    (gradient,) = torch.autograd.grad(y, z, delta)
    (right,) = torch.autograd.grad(expected, z, delta)
    assert torch.equal(gradient, right)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_not_a_number_stays_so(keep):
    z = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    y = KeptReLU.apply(z, torch.full((3,), keep))
    assert y.isnan().tolist() == [[True, False, False]]
    assert y[0, 1:].tolist() == [float("inf"), 0.0 if keep else -float("inf")]


@pytest.mark.parametrize("gates", [False, True])
def test_one_tensor_of_the_inputs_size_is_kept_for_the_backward_pass(gates):
    z = torch.randn(64, 8, 16, 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        if gates:
            BlendedReLU.apply(z * 1, torch.ones(8, 16, 16, requires_grad=True), None, None, None)
        else:
            KeptReLU.apply(z * 1, torch.ones(8, 16, 16, dtype=torch.bool))
    assert sum(saved) <= 1.1 * z.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_at_and_beside_zero(dtype):
    """Of whole numbers, which every type holds: at zero a gated ReLU has its surrogate's share of the slope alone."""
    z = torch.tensor([[-2.0, -0.0, 0.0, 2.0, -1.0, 3.0]], dtype=dtype, requires_grad=True)
    m = torch.full((6,), 0.5, dtype=dtype, requires_grad=True)
    delta = torch.tensor([[4.0, 4.0, 4.0, 4.0, -8.0, -8.0]], dtype=dtype)
    for c1 in (None, torch.ones(6, dtype=dtype)):
        for_z, for_m = torch.autograd.grad(BlendedReLU.apply(z, m, None, c1, None), (z, m), delta)
        assert for_z.tolist() == [[2.0, 2.0, 2.0, 4.0, -4.0, -8.0]]
        assert for_m.tolist() == [8.0, 0.0, 0.0, 0.0, -8.0, 0.0]

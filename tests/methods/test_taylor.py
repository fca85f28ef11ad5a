"""The Taylor score against its definition, image by image."""

import copy

import torch
import torch.nn.functional as F

from reluctant.masked import attach
from reluctant.methods.taylor import Taylor, layer_report
from reluctant.sites import find_sites
from reluctant.surrogates import Affine


def test_score_is_the_mean_over_images_of_gradient_times_gap(trained, few_digits, make_job):
    trained = copy.deepcopy(trained)
    sites = find_sites(trained, few_digits.example)
    masked = attach(trained, sites)
    scores = Taylor(images=16, batch=8).scores(masked, make_job(masked, few_digits, 0.5))

    expected = torch.zeros(sites["relu"].shape)
    for index in range(16):
        seen = {}

        def keep(module, args, output, seen=seen):
            output.retain_grad()
            seen["z"], seen["y"] = args[0], output

        handle = trained.relu.register_forward_hook(keep)
        with torch.enable_grad():
            image = few_digits.train.inputs(slice(index, index + 1)).requires_grad_()
            F.cross_entropy(trained(image), few_digits.train.labels[index : index + 1]).backward()
        handle.remove()
        expected += (seen["y"].grad * (seen["y"] - seen["z"])).abs()[0].detach()
    torch.testing.assert_close(scores["relu"], expected / 16, atol=1e-6, rtol=1e-3)


def test_a_relu_that_is_never_negative_scores_nothing(trained, few_digits, make_job):
    masked = attach(trained, find_sites(trained, few_digits.example))
    torch.nn.init.constant_(masked.model.bn1.bias, 100.0)
    scores = Taylor(images=64).scores(masked, make_job(masked, few_digits, 0.5))
    assert float(scores["relu"].abs().max()) == 0
    assert float(scores["layer1.0.relu1"].abs().max()) > 0


def test_the_gap_is_to_the_surrogate_at_hand(trained, few_digits, make_job):
    sites = find_sites(trained, few_digits.example)
    plain, affine = attach(trained, sites), attach(trained, sites, Affine())
    method = Taylor(images=64)
    one = method.scores(plain, make_job(plain, few_digits, 0.5))
    two = method.scores(affine, make_job(affine, few_digits, 0.5))
    assert sum(float(s.sum()) for s in two.values()) < sum(float(s.sum()) for s in one.values())


def test_layer_report_shares_sum_to_one():
    rows = layer_report({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0])})
    assert rows == [("a", 0.75, 1.5), ("b", 0.25, 1.0)]

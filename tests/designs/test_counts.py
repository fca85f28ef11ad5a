"""ReLUs, multiply-adds and parameters of published networks, which are arithmetic and so are exact.

Sources: the definitions in the public code of PrivCirNet (HybReNets), of a multi-party inference code base with the
authors' DeepReDuce networks, of NYU-DICE-Lab/Sphynx, of zghodsi/CryptoNAS and of danczs/NetworkAdjustment; counts by
hand from these.
"""

import pytest
import torch

from reluctant.costs.counting import Count, count
from reluctant.designs.adjusted import Adjusted
from reluctant.designs.base import Design, part_of
from reluctant.designs.cryptonas import CryptoNAS
from reluctant.designs.deepreduce import DeepReDuce
from reluctant.designs.hybrenet import HybReNet
from reluctant.designs.sphynx import Sphynx
from reluctant.models import ModelSpec
from reluctant.sites import find_sites


def counted(model: Design | str, side: int = 32, classes: int = 100) -> Count:
    """What one inference consists of; on the meta device, so nothing is computed."""
    with torch.device("meta"):
        network = model.network(classes, 3) if isinstance(model, Design) else ModelSpec.parse(model).build(classes, 3)
        example = torch.zeros(1, 3, side, side)
    return count(network, find_sites(network, example), example)


def by_part(found: Count) -> dict[str, int]:
    parts: dict[str, int] = {}
    for site, relus in found.relus.items():
        parts[part_of(site)] = parts.get(part_of(site), 0) + relus
    return parts


def is_as(found: Count, relus: int, megamacs: float, megaparameters: float | None = None) -> None:
    assert found.total_relus == relus
    assert round(found.total_macs / 1e6, 1) == megamacs
    if megaparameters is not None:
        assert round(found.parameters / 1e6, 2) == megaparameters


@pytest.mark.parametrize(
    ("multipliers", "width", "stages", "total", "megamacs", "megaparameters"),
    [
        ((2, 2, 2), 64, (262144, 131072, 65536, 32768), 557056, 555.5, 11.22),
        ((2, 2, 2), 32, (131072, 65536, 32768, 16384), 278528, 139.3, 2.82),
        ((2, 2, 2), 16, (65536, 32768, 16384, 8192), 139264, 35.1, 0.71),
        ((5, 5, 3), 8, (32768, 40960, 51200, 38400), 171520, 263.5, 12.20),
        ((5, 5, 3), 16, (65536, 81920, 102400, 76800), 343040, 1053.4, 48.65),
        ((5, 5, 3), 32, (131072, 163840, 204800, 153600), 686080, 4212.3, 194.33),
        ((5, 7, 2), 8, (32768, 40960, 71680, 35840), 189440, 317.7, 12.38),
        ((5, 7, 2), 16, (65536, 81920, 143360, 71680), 378880, 1270.3, 49.38),
        ((6, 6, 2), 8, (32768, 49152, 73728, 36864), 200704, 341.6, 13.13),
        ((6, 6, 2), 16, (65536, 98304, 147456, 73728), 401408, 1365.8, 52.39),
        ((7, 5, 2), 8, (32768, 57344, 71680, 35840), 205824, 331.5, 12.47),
        ((7, 5, 2), 16, (65536, 114688, 143360, 71680), 411648, 1325.6, 49.73),
        ((2, 5, 3), 16, (65536, 32768, 40960, 30720), 186368, 177.7, 7.83),
        ((2, 5, 3), 32, (131072, 65536, 81920, 61440), 372736, 709.6, 31.20),
        ((2, 7, 2), 32, (131072, 65536, 114688, 57344), 401408, 848.5, 31.67),
        ((2, 6, 2), 32, (131072, 65536, 98304, 49152), 376832, 644.8, 23.36),
        ((4, 4, 4), 16, (65536, 65536, 65536, 65536), 278528, 659.6, 33.11),
    ],
)
def test_hybrenets_at_cifar_size(multipliers, width, stages, total, megamacs, megaparameters):
    design = HybReNet(multipliers=multipliers, width=width)
    found = counted(design)
    is_as(found, total, megamacs, megaparameters)
    parts = {"stem": 1024 * width} | {f"stage {number}": relus for number, relus in enumerate(stages, start=1)}
    assert by_part(found) == parts == design.relus(32)
    bare = HybReNet(multipliers=multipliers, width=width, stem_relu=False)
    assert sum(bare.relus(32).values()) == total - 1024 * width


@pytest.mark.parametrize(
    ("model", "relus", "bare", "megamacs", "megaparameters"),
    [
        ("resnet18", 557056, "resnet18:stem_relu=false", 555.5, 11.22),
        ("resnet34", 966656, "resnet34:stem_relu=false", 1159.4, 21.33),
        ("wrn-22-8", 1392640, None, 2454.2, None),
        ("wrn-16-8", 933888, None, 1548.2, None),
    ],
)
def test_the_networks_they_are_compared_with(model, relus, bare, megamacs, megaparameters):
    is_as(counted(model), relus, megamacs, megaparameters)
    if bare is not None:
        assert relus - counted(bare).total_relus == 65536


@pytest.mark.parametrize(("model", "megaparameters"), [("wrn-22-8", 17.19), ("wrn-16-8", 11.00)])
def test_the_convolutions_of_wide_networks(model, megaparameters):
    with torch.device("meta"):
        network = ModelSpec.parse(model).build(100, 3)
    convolutions = [m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    head = [p for name, p in network.named_parameters() if name.startswith("fc")]
    with_head = (sum(convolutions) + sum(p.numel() for p in head)) / 1e6
    assert round(with_head, 2) == megaparameters or round(sum(convolutions) / 1e6, 2) == megaparameters


@pytest.mark.parametrize(
    ("model", "relus", "megamacs"),
    [("hybrenet-5x5x3", 1372160, 4213), ("hybrenet-2x5x3", 1490944, 2838), ("resnet18", 2228224, 2222)],
)
def test_hybrenets_at_tiny_imagenet_size(model, relus, megamacs):
    found = counted(model, side=64, classes=200)
    assert found.total_relus == relus == 4 * counted(model).total_relus
    assert round(found.total_macs / 1e6) == megamacs


@pytest.mark.parametrize(
    ("multipliers", "shares"),
    [
        ((5, 5, 3), (20.1, 25.1, 31.3, 23.5)),
        ((5, 7, 2), (18.1, 22.6, 39.5, 19.8)),
        ((6, 6, 2), (17.0, 25.5, 38.3, 19.1)),
        ((7, 5, 2), (16.6, 29.0, 36.3, 18.1)),
        ((2, 5, 3), (38.6, 19.3, 24.1, 18.1)),
        ((2, 2, 2), (53.3, 26.7, 13.3, 6.7)),
    ],
)
def test_shares_of_the_stages_do_not_depend_on_the_width(multipliers, shares):
    for width in (8, 16, 24):
        counts = list(HybReNet(multipliers=multipliers, width=width, stem_relu=False).relus(32).values())
        assert tuple(round(100 * relus / sum(counts), 1) for relus in counts) == shares


@pytest.mark.parametrize(
    ("name", "relus", "megamacs", "megaparameters"),
    [
        ("cifar100-230k", 229376, 555.5, 11.22),
        ("cifar100-197k", 196608, 555.5, 11.22),
        ("cifar100-115k", 114688, 555.5, 11.22),
        ("cifar100-57k", 57344, 139.3, 2.82),
        ("cifar100-49k", 49152, 139.3, 2.82),
        ("cifar100-29k", 28672, 138.9, 11.22),
        ("cifar100-14k", 14336, 34.8, 2.82),
        ("cifar100-12k", 12288, 34.8, 2.82),
        ("cifar100-7k", 7168, 20.7, 1.27),
        ("tiny-918k", 917504, 2221.8, None),
        ("tiny-459k", 458752, 2221.8, None),
        ("tiny-393k", 393216, 2221.8, None),
        ("tiny-229k", 229376, 557.2, None),
        ("tiny-197k", 196608, 2221.8, None),
        ("tiny-115k", 114688, 555.5, None),
        ("tiny-98k", 98304, 557.2, None),
        ("tiny-57k", 57344, 139.3, None),
        ("tiny-49k", 49152, 555.5, None),
    ],
)
def test_deepreduces_networks(name, relus, megamacs, megaparameters):
    side, classes = (64, 200) if name.startswith("tiny") else (32, 100)
    design = DeepReDuce.released()[name]
    found = counted(design, side, classes)
    is_as(found, relus, megamacs, megaparameters)
    assert by_part(found) == design.relus(side)


@pytest.mark.parametrize(
    ("name", "relus", "megamacs", "megaparameters"),
    [
        ("cifar100-25k", 25600, 194.6, 2.89),
        ("cifar100-30k", 30720, 238.8, 3.58),
        ("cifar100-40k", 40960, 252.6, 3.63),
        ("cifar100-50k", 51200, 283.1, 3.75),
        ("cifar100-70k", 71680, 554.7, 7.35),
        ("cifar100-100k", 102400, 1131.6, 14.99),
    ],
)
def test_sphynxes_at_cifar_size(name, relus, megamacs, megaparameters):
    design = Sphynx.released()[name]
    found = counted(design)
    is_as(found, relus, megamacs, megaparameters)
    assert by_part(found) == design.relus(32)
    assert len(found.relus) == design.cells
    assert set(found.relus.values()) == {design.width * 32 * 32}


@pytest.mark.parametrize(
    ("name", "relus", "megamacs", "megaparameters"),
    [
        ("tiny-102k", 102400, 778, 2.90),
        ("tiny-204k", 204800, 1132, 3.76),
        ("tiny-286k", 286720, 2219, 7.36),
        ("tiny-492k", 491520, 6517, 21.6),
        ("tiny-614k", 614400, 10182, 33.7),
        ("imagenet-345k", 344960, 3400, 60),
        ("imagenet-517k", 517440, 7600, 134),
        ("imagenet-690k", 689920, 13500, 237),
        ("imagenet-862k", 862400, 21000, 371),
        ("imagenet-1034k", 1034880, 30300, 534),
    ],
)
def test_larger_sphynxes(name, relus, megamacs, megaparameters):
    large = name.startswith("imagenet")
    side, classes = (224, 1000) if large else (64, 200)
    design = Sphynx.released()[name]
    found = counted(design, side, classes)
    assert found.total_relus == relus
    assert by_part(found) == design.relus(side)
    assert round(found.total_macs / 1e6, -2 if large else 0) == megamacs
    assert round(found.parameters / 1e6, 0 if large else 1 if megaparameters > 20 else 2) == megaparameters
    if large:
        assert found.relus.get("stem.2", 0) == design.width // 2 * 112 * 112
        assert round(design.relus(224)["stem"] / relus, 2) == 0.55


@pytest.mark.parametrize(
    ("name", "relus", "megamacs", "megaparameters"),
    [
        ("cifar100-cnet1", 86016, 100, 1.3),
        ("cifar10-cnet1", 86016, 117, 1.4),
        ("cifar100-cnet2", 344064, 1297, 15.3),
        ("cifar10-cnet2", 344064, 1191, 14.9),
        ("cifar100-cnet3", 1376256, 11500, 142),
        ("cifar10-cnet3", 1376256, 13200, 167),
    ],
)
def test_cryptonets(name, relus, megamacs, megaparameters):
    design = CryptoNAS.released()[name]
    found = counted(design)  # 100 classes in the rows of CIFAR-10, too, as their parameters say
    assert found.total_relus == relus
    assert by_part(found) == design.relus(32)
    macs, weights = unread_reductions(design)
    digits = -2 if megamacs > 2000 else 0
    assert round((found.total_macs + macs) / 1e6, digits) == megamacs
    assert round((found.parameters + weights) / 1e6, 0 if megaparameters > 100 else 1) == megaparameters


def unread_reductions(design: CryptoNAS) -> tuple[int, int]:
    """Multiply-adds and weights of reductions that the authors' code makes and nothing reads; we leave them out."""
    macs = weights = 0
    third, width, side = len(design.layers) // 3, design.width, 32
    for first in (third, 2 * third):
        side //= 2
        read = {first, *(source for _, sources in design.layers[first:] for source in sources if source <= first)}
        unread = first + 1 - len(read)
        macs += unread * width * 4 * width * side**2
        weights += unread * (width * 4 * width + 2 * 4 * width)
        width *= 4
    return macs, weights


@pytest.mark.parametrize(
    ("design", "relus", "megamacs"),
    [
        (Adjusted(), 172032, 40.1),
        (Adjusted(blocks=(5, 5, 5)), 286720, 68.4),
        (Adjusted(blocks=(9, 9, 9)), 516096, 125.0),
        (Adjusted(blocks=(18, 18, 18)), 1032192, 252.5),
        (Adjusted.released()["cifar100-resnet20"], 151168, 42.9),
    ],
)
def test_networks_of_adjusted_widths(design, relus, megamacs):
    """The paper's table counts no stem; its rows of twice and four times the width are within 0.5 %."""
    found = counted(design)
    assert found.total_relus == relus
    assert by_part(found) == design.relus(32)
    assert round((found.total_macs - found.macs["conv1"]) / 1e6, 1) == megamacs


@pytest.mark.parametrize(("width", "megamacs"), [(32, 160), (64, 642)])
def test_wide_networks_before_their_adjustment(width, megamacs):
    found = counted(Adjusted(width=width))
    assert (found.total_macs - found.macs["conv1"]) / 1e6 == pytest.approx(megamacs, rel=0.005)

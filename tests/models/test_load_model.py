"""Networks by name, with options, with weights, and from a user's own file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from reluctant.errors import CheckpointError, UnknownName, UsageError
from reluctant.models import MODELS, ModelSpec, load_model
from reluctant.models.resnet import ResNet
from reluctant.models.weights import load_weights
from reluctant.task import Augmentation, Dataset, Task


@pytest.fixture
def task() -> Task:
    """Three classes of grey 8x8 images."""
    labels = torch.arange(12) % 3
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    dataset = Dataset("tiny", images, labels, images, labels, ("a", "b", "c"), (0.0,), (1.0,), Augmentation())
    return Task.from_dataset(dataset)


def user_file(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def failure(path: Path, function: str, task: Task) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(f"{path}:{function}", task=task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_zoo_network_fits_the_task(task: Task) -> None:
    model = load_model("resnet8", task=task)
    assert isinstance(model, ResNet)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_options_come_after_a_colon_or_as_keywords(task: Task) -> None:
    typed = load_model("resnet8:stem_relu=false,width=4", task=task)
    given = load_model("resnet8", task=task, stem_relu=False, width=4)
    assert repr(typed) == repr(given)
    assert isinstance(typed.relu, nn.Identity)
    assert typed.conv1.weight.shape == (4, 1, 3, 3)
    assert isinstance(load_model("wrn-10-1:last_relu=false", task=task).relu, nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "did you mean 'resnet1"),
        ("resnet19", "wrn-D-K"),
        ("resnet8:widht=3", "unknown option of resnet8 'widht'; did you mean 'width'"),
        ("resnet8:", "unknown option of resnet8"),
        ("resnet8:classes=3", "unknown option of resnet8 'classes'"),
        ("resnet8:width=wide", "width is 'wide'; expected a positive whole number"),
        ("resnet8:width=0", "expected a positive whole number"),
        ("resnet8:stem_relu=1", "expected true or false"),
        ("vgg16-bn:pool=sum", "pool is 'sum'; expected max or avg"),
        ("resnet8:width=3,width=4", "'width' is given twice"),
        ("wrn-20-8", "D must be 6n + 4"),
        ("wrn-22-0", "K at least 1"),
        ("net.py", "name the function that builds it, as in net.py:build"),
    ],
)
def test_a_wrong_name_is_refused(name: str, message: str, task: Task) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        load_model(name, task=task)
    assert message in str(caught.value)


def test_unknown_models_and_options_are_unknown_names(task: Task) -> None:
    for name in ("resnet19", "resnet8:widht=3"):
        with pytest.raises(UnknownName):
            load_model(name, task=task)
    with pytest.raises(UnknownName):
        MODELS["wrn-D-K"]


def test_the_zoo_knows_what_it_can_build() -> None:
    assert "wrn-28-10" in MODELS
    assert "wrn-28" not in MODELS
    assert "resnet18" in MODELS
    assert "resnet19" not in MODELS


@pytest.mark.parametrize("text", ["resnet18", "resnet18:stem_relu=False, width=32", "vgg16-bn:pool=avg", "wrn-28-10"])
def test_a_spec_is_one_string_there_and_back(text: str) -> None:
    spec = ModelSpec.parse(text)
    assert ModelSpec.parse(str(spec)) == spec
    assert str(spec) == text.replace("False", "false").replace(" ", "")


def test_the_spec_of_a_users_file_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec.parse("net.py:build")
    assert str(spec) == f"{tmp_path.resolve()}/net.py:build"
    assert ModelSpec.parse(str(spec)) == spec


def test_a_users_function_gets_what_its_signature_has(tmp_path: Path, task: Task) -> None:
    path = user_file(
        tmp_path,
        "from torch import nn\n"
        "def bare(): return nn.Linear(1, 2)\n"
        "def both(channels, classes): return nn.Linear(channels, classes)\n"
        "def one(*, classes, width=5, **rest): return nn.Linear(width, classes)\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, classes): super().__init__(7, classes)\n",
    )
    shapes = {
        name: tuple(load_model(f"{path}:{name}", task=task).weight.shape) for name in ("bare", "both", "one", "Net")
    }
    assert shapes == {"bare": (2, 1), "both": (3, 1), "one": (3, 5), "Net": (3, 7)}


def test_a_users_file_may_import_its_neighbour(tmp_path: Path, task: Task) -> None:
    user_file(tmp_path, "SIZE = 9\n", "neighbour_of_the_net.py")
    path = user_file(
        tmp_path,
        "from torch import nn\n"
        "def build():\n"
        "    from neighbour_of_the_net import SIZE\n"
        "    return nn.Linear(SIZE, 1)\n",
    )
    assert load_model(f"{path}:build", task=task).in_features == 9


def test_a_users_file_is_read_anew(tmp_path: Path, task: Task) -> None:
    path = user_file(tmp_path, "from torch import nn\ndef build(): return nn.Linear(1, 1)\n")
    load_model(f"{path}:build", task=task)
    user_file(tmp_path, "from torch import nn\ndef build(): return nn.Linear(1, 22)\n")
    assert load_model(f"{path}:build", task=task).out_features == 22


def test_a_failing_users_file_is_blamed_with_its_line(tmp_path: Path, task: Task) -> None:
    path = user_file(tmp_path, "\n\nimport torch_that_is_not_there\n")
    assert f"{path}:3: ModuleNotFoundError" in failure(path, "build", task)
    path = user_file(tmp_path, "def build(:\n")
    assert f"{path}:1: SyntaxError" in failure(path, "build", task)
    path = user_file(tmp_path, "def inner():\n    return 1 / 0\n\ndef build():\n    return inner()\n")
    assert f"{path}:2: ZeroDivisionError: division by zero" in failure(path, "build", task)
    path = user_file(tmp_path, "import sys\nsys.exit('bye')\n")
    assert f"{path}:2: SystemExit: bye" in failure(path, "build", task)
    path = user_file(tmp_path, "raise ValueError('two\\nlines')\n")
    assert failure(path, "build", task).endswith("ValueError: two")


def test_a_users_function_that_will_not_do_is_refused(tmp_path: Path, task: Task) -> None:
    path = user_file(
        tmp_path,
        "from torch import nn\n"
        "def build_net(): return 3\n"
        "def needy(depth, classes): return nn.Identity()\n"
        "ready = nn.Identity()\n",
    )
    assert "unknown function" in failure(path, "build_met", task)
    assert "did you mean 'build_net'" in failure(path, "build_met", task)
    assert "returned int; an nn.Module is expected" in failure(path, "build_net", task)
    assert "needs an argument 'depth'" in failure(path, "needy", task)
    assert "is of type Identity; a function" in failure(path, "ready", task)
    assert "no such file" in failure(tmp_path / "absent.py", "build", task)
    with pytest.raises(UsageError, match="takes no options, got width"):
        load_model(f"{path}:build_net", task=task, width=3)


def test_weights_are_loaded_whole(tmp_path: Path, task: Task) -> None:
    torch.manual_seed(1)
    source = load_model("resnet8:width=4", task=task)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = load_model("resnet8:width=4", task=task, weights=tmp_path / "w.safetensors")
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def altered(state: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    state = {name: tensor.clone() for name, tensor in state.items()}
    if change == "missing":
        del state["bn1.weight"]
    elif change == "extra":
        state["head.bias"] = torch.zeros(3)
    elif change == "shape":
        state["fc.weight"] = torch.zeros(4, 16)
    elif change == "type":
        state["fc.weight"] = state["fc.weight"].to(torch.int8)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "it has no 'bn1.weight'"),
        ("extra", "it has 'head.bias', which this one has not"),
        ("shape", r"'fc.weight' has shape \[4, 16\], \[3, 16\] is expected"),
        ("type", "'fc.weight' is torch.int8, torch.float32 is expected"),
    ],
)
def test_weights_of_another_network_are_refused(change: str, message: str, tmp_path: Path, task: Task) -> None:
    path = tmp_path / "w.safetensors"
    save_file(altered(load_model("resnet8:width=4", task=task).state_dict(), change), path)
    with pytest.raises(CheckpointError, match=message):
        load_model("resnet8:width=4", task=task, weights=path)


def test_weights_that_are_damaged_or_not_there_are_refused(tmp_path: Path, task: Task) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_model("resnet8", task=task, weights=path)
    save_file(load_model("resnet8", task=task).state_dict(), path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"PK\x03\x04 a pickle in a zip", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_model("resnet8", task=task, weights=str(path))


def test_a_tied_weight_needs_to_be_there_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        layer = nn.Linear(2, 2)
        return nn.Sequential(layer, nn.ReLU(), layer)

    source, model = tied(), tied()
    save_model(source, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, source[0].weight)
    assert model[0].weight is model[2].weight


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hybrenet:width=4", "hybrenet:blocks=2-2-2-2,width=4"),
        ("deepreduce-cifar100-12k", "deepreduce:width=32,stem_stride=2,thin=true,cull=1-4"),
        ("resnet20", "resnet20:width=16,stem_relu=true"),
        ("wrn-16-2", "wrn-16-2"),
    ],
)
def test_names_of_one_network_have_one_identity(one: str, other: str) -> None:
    assert ModelSpec.parse(one).identity == ModelSpec.parse(other).identity
    assert ModelSpec.parse("resnet20:width=8").identity != ModelSpec.parse(one).identity

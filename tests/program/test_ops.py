"""A program's public part: what crosses the wire, and what is refused when it comes back."""

import copy
import json

import numpy as np
import pytest

from reluctant.errors import UsageError
from reluctant.program.operations import Activation, Add, Conv2d, Linear, MaxPool, Reshape, Scale
from reluctant.program.ops import Program, ProgramSite

RNG = np.random.default_rng(0)
KEEP = RNG.random(32) < 0.5


def make(**changes) -> Program:
    arrays = {
        "conv.weight": RNG.normal(size=(2, 3, 3, 3)).astype(np.float32),
        "relu.c0": RNG.normal(size=int((~KEEP).sum())).astype(np.float32),
        "fc.weight": RNG.normal(size=(5, 8)).astype(np.float32),
        "fc.bias": RNG.normal(size=5).astype(np.float32),
    }
    fields = {
        "ops": (
            Conv2d(output="conv", inputs=("input",), weight="conv.weight", padding=(1, 1, 1, 1), stride=(2, 2)),
            Activation(output="relu", inputs=("conv",), site="stem.relu", keep=KEEP, c0="relu.c0", factors=(1, 3)),
            Add(output="sum", inputs=("relu", "conv")),
            MaxPool(output="pool", inputs=("sum",), kernel=(2, 2), stride=(2, 2)),
            Reshape(output="flat", inputs=("pool",), shape=(8,)),
            Scale(output="even", inputs=("flat",), factors=(0.25,) * 8),
            Linear(output="fc", inputs=("even",), weight="fc.weight", bias="fc.bias"),
        ),
        "input_shape": (3, 8, 8),
        "outputs": ("fc", "flat"),
        "array_shapes": {name: array.shape for name, array in arrays.items()},
        "sites": (ProgramSite("stem.relu", int(KEEP.sum()), 32, "shift"),),
        "arrays": arrays,
    }
    return Program(**(fields | changes))


def test_public_part_goes_through_json_and_back():
    program = make()
    value = json.loads(json.dumps(program.public()))
    back = Program.from_public(value)
    assert back.arrays is None
    assert back.public() == program.public()
    assert back.digest == program.digest
    assert back.shapes == program.shapes
    assert back.kept == program.kept == KEEP.sum()
    (activation,) = back.activations()
    assert (activation.keep == KEEP).all()
    assert back.with_arrays(program.arrays).arrays is program.arrays


def test_range_of_the_inputs_is_public():
    program = make(input_range=(-1.9894736, 2.126488447189331))
    back = Program.from_public(json.loads(json.dumps(program.public())))
    assert back.input_range == program.input_range
    assert Program.from_public(make().public()).input_range is None
    for strange in ([2.0, 1.0], [0.0], "all", [0.0, float("inf")], [0.0, float("nan")], {}):
        with pytest.raises(UsageError, match=r"input.range"):
            Program.from_public(make().public() | {"input_range": strange})


def test_public_part_holds_no_number_of_the_server():
    program = make()
    text = json.dumps(program.public())
    for array in program.arrays.values():
        for number in array.reshape(-1):
            assert repr(float(number))[:8] not in text
    doubled = make(arrays={name: 2 * array for name, array in program.arrays.items()})
    assert doubled.digest == program.digest


def test_mask_changes_the_digest():
    other = KEEP.copy()
    first, second = np.flatnonzero(KEEP)[0], np.flatnonzero(~KEEP)[0]
    other[[first, second]] = other[[second, first]]
    ops = list(make().ops)
    ops[1] = Activation(output="relu", inputs=("conv",), site="stem.relu", keep=other, c0="relu.c0")
    assert make(ops=tuple(ops)).digest != make().digest


def test_macs_and_shapes():
    program = make()
    assert program.shapes == {
        "input": (3, 8, 8),
        "conv": (2, 4, 4),
        "relu": (2, 4, 4),
        "sum": (2, 4, 4),
        "pool": (2, 2, 2),
        "flat": (8,),
        "even": (8,),
        "fc": (5,),
    }
    assert program.macs() == {"conv": 32 * 27, "fc": 40}


def test_index_lists_of_an_activation():
    (activation,) = make().activations()
    z = RNG.normal(size=32)
    assert (np.concatenate([z[activation.kept], z[activation.rest]])[activation.inverse] == z).all()


def spoil(path, new):
    """Return a change of one place of the public part; ``...`` removes it."""

    def change(value):
        *way, last = path
        for key in way:
            value = value[key]
        if new is ...:
            del value[last]
        else:
            value[last] = new

    return change


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (["format"], 2, "expected format 1"),
        (["ops"], ..., "key 'ops' is missing"),
        (["ops"], {}, "is no list"),
        (["ops", 0], "conv2d", "unknown operation 'conv2d'"),
        (["ops", 0, "kind"], "exec", "unknown operation 'exec'"),
        (["ops", 0, "kind"], ["conv2d"], "unknown operation"),
        (["ops", 0, "weight"], ..., "conv2d lacks its field 'weight'"),
        (["ops", 0, "surplus"], 1, "conv2d has no field 'surplus'"),
        (["ops", 0, "stride"], [2, "2"], "conv2d.stride is '2', expected int"),
        (["ops", 0, "stride"], [2], "conv2d.stride"),
        (["ops", 0, "stride"], [0, 2], "window"),
        (["ops", 0, "stride"], [True, 2], "conv2d.stride"),
        (["ops", 0, "stride"], [1e9, 2], "conv2d.stride"),
        (["ops", 0, "padding"], [-1, 0, 0, 0], "window"),
        (["ops", 0, "padding"], [1 << 30, 0, 1 << 30, 0], "too large"),
        (["ops", 0, "groups"], 0, "weight of shape"),
        (["ops", 0, "weight"], "fc.weight", "weight"),
        (["ops", 0, "weight"], "elsewhere", "reads the array 'elsewhere', which is not there"),
        (["ops", 0, "inputs"], ["relu"], "reads 'relu', which is not there"),
        (["ops", 0, "inputs"], [], "has 0 inputs"),
        (["ops", 1, "keep"], [1, 0], "expected a packed mask"),
        (["ops", 1, "keep", "bits"], 31, "mask of 31, input of 32"),
        (["ops", 1, "keep", "bits"], -1, "expected a packed mask"),
        (["ops", 1, "keep", "base64"], "!!!!", "expected a packed mask"),
        (["ops", 1, "keep", "base64"], 5, "expected a packed mask"),
        (["ops", 1, "site"], "elsewhere", "which its sites do not say"),
        (["ops", 1, "factors"], [1, 2, 3], "factors for 2 channels, 1 to 1024"),
        (["ops", 1, "factors"], [1, 0], "factors for 2 channels, 1 to 1024"),
        (["ops", 1, "factors"], [1, 1025], "factors for 2 channels, 1 to 1024"),
        (["ops", 1, "factors"], [1, 1.5], "activation.factors is '1.5', expected int"),
        (["ops", 1, "factors"], 2, "activation.factors is '2'"),
        (["ops", 5, "factors"], [0.5] * 7, "7 factors for 8 channels"),
        (["ops", 5, "factors"], [float("nan")] * 8, "8 factors for 8 channels, or no numbers"),
        (["ops", 5, "factors"], ["1"] * 8, "scale.factors is '1', expected float"),
        (["ops", 2, "output"], "relu", "value 'relu' is made twice"),
        (["ops", 2, "inputs"], ["relu", "input"], "shapes"),
        (["ops", 3, "padding"], [2, 2], "padding"),
        (["ops", 4, "shape"], [9], "reshape 'flat'"),
        (["ops", 4, "shape"], [-2, -4], "reshape 'flat'"),
        (["ops", 4, "shape"], [], "reshape 'flat'"),
        (["input_shape"], [3, 0, 8], "its input has the shape"),
        (["input_shape"], [], "its input has the shape"),
        (["outputs"], [], "it has no output"),
        (["outputs"], ["nothing"], "its output 'nothing' is made by no operation"),
        (["outputs"], "fc", "outputs is 'fc'"),
        (["arrays", "fc.bias"], [6], "bias"),
        (["arrays", "fc.bias"], 5, "arrays is '5'"),
        (["arrays", "unused"], [3], "array 'unused' of shape (3,) is read by no operation"),
        (["arrays"], [], "is no object"),
        (["sites"], 5, "is no list"),
        (["sites", 0], ["stem.relu", 40, 32, "shift"], "keeps 40 of 32"),
        (["sites", 0], ["stem.relu"], "a site is not"),
    ],
)
def test_public_part_of_the_other_party_is_not_taken_on_trust(path, new, message):
    value = copy.deepcopy(json.loads(json.dumps(make().public())))
    spoil(path, new)(value)
    with pytest.raises(UsageError) as caught:
        Program.from_public(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, "program", [], {}])
def test_what_is_no_program_at_all(value):
    with pytest.raises(UsageError, match="the other party's program is not valid"):
        Program.from_public(value)


def test_arrays_must_be_those_that_the_program_names():
    arrays = dict(make().arrays)
    with pytest.raises(UsageError, match="not those that it names"):
        make(arrays=arrays | {"more": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="finite float32"):
        make(arrays=arrays | {"fc.bias": np.full(5, np.nan, np.float32)})
    with pytest.raises(UsageError, match="finite float32"):
        make(arrays=arrays | {"fc.bias": np.zeros(5)})

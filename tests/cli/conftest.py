"""The command line in this process, and a trained checkpoint to use it on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from reluctant.checkpoints import Origin, save_checkpoint
from reluctant.cli.main import main


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(in_folder, capsys, monkeypatch) -> Callable[..., Ended]:
    """Runs ``reluctant`` with the given words in an empty folder, whatever data the machine has."""
    monkeypatch.delenv("RELUCTANT_DATA", raising=False)

    def run(*words: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def refused(cli) -> Callable[..., str]:
    """Runs ``reluctant``, expects exit code 2 and one line of error and nothing written, and returns that line."""

    def run(*words: object) -> str:
        before = sorted(Path().rglob("*"))
        ended = cli(*words)
        assert ended.code == 2, ended
        assert ended.out == ""
        lines = ended.err.strip().splitlines()
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("error: ")
        assert sorted(Path().rglob("*")) == before
        return lines[0]

    return run


@pytest.fixture
def teacher(in_folder, trained, digits) -> Path:
    """A folder with a dense checkpoint."""
    facts = {"seed": 0, "epochs": 4, "val": 0.9, "n_val": 143, "device": "cpu, 1 threads"}
    facts["input_range"] = digits.train.input_range
    save_checkpoint(in_folder / "teacher", trained, Origin("resnet8:width=8", "digits", 10, (1, 8, 8), facts=facts))
    return Path("teacher")

"""Where numbers come from, without a word about whose machine it was."""

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reluctant import provenance
from reluctant.provenance import (
    as_if_typed,
    describe_device,
    environment,
    source_version,
    typed_command,
    without_folders,
)


def test_a_command_is_kept_as_typed() -> None:
    arguments = ["/opt/venv/bin/reluctant", "linearize", "runs/teacher", "--budget", "10%", "--note", "two words"]
    assert typed_command(arguments) == "reluctant linearize runs/teacher --budget 10% --note 'two words'"


def test_no_absolute_path_is_left(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(in_folder.parent))
    arguments = ["reluctant", str(in_folder / "runs"), f"--data={in_folder.parent}/data", "--out", "/mnt/disk7/out"]
    assert typed_command(arguments) == "reluctant runs --data=~/data --out .../out"


def test_records_made_for_a_point_say_its_command(in_folder: Path) -> None:
    with as_if_typed(["reluctant", "sweep", str(in_folder / "snl.toml")]):
        assert typed_command() == "reluctant sweep snl.toml"
        assert typed_command(["reluctant", "demo"]) == "reluctant demo"
    assert "snl.toml" not in typed_command()


def test_no_folder_is_left_in_a_message() -> None:
    text = "cannot open '/home/ann/data/cifar', 1/2 or a/b; see https://pytorch.org/docs"
    assert without_folders(text) == "cannot open '.../cifar', 1/2 or a/b; see https://pytorch.org/docs"


def test_an_interpreter_without_a_script_is_called_python() -> None:
    assert typed_command([""]) == typed_command(["-c"]) == "python"


def test_the_device_is_named_in_words() -> None:
    count = torch.get_num_threads()
    assert describe_device() == ("cpu, 1 thread" if count == 1 else f"cpu, {count} threads")


def test_the_environment_names_versions_and_no_host() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["cpus"] >= 1
    assert platform.node() not in found.values()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of its own that stands in for the one this package is developed in."""
    monkeypatch.setattr(provenance, "_HERE", tmp_path)
    source_version.cache_clear()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "provenance.py").write_text("")
    (tmp_path / "other").write_text("")
    subprocess.run([*git, "add", "other"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    yield tmp_path
    source_version.cache_clear()


def test_a_tree_that_tracks_the_package_gives_its_commit(tree: Path) -> None:
    git = ["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", "provenance.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "two"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    found = source_version()
    assert len(found) >= 7
    assert head.startswith(found)


def test_changes_that_are_not_committed_show(tree: Path) -> None:
    git = ["git", "-C", str(tree)]
    subprocess.run([*git, "add", "provenance.py"], check=True)
    assert source_version().endswith("-dirty")


def test_an_installation_inside_of_another_tree_gives_the_version(tree: Path) -> None:
    assert source_version() == environment()["reluctant"]

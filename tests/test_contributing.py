"""What CONTRIBUTING.md promises is true: its method works as it stands."""

import importlib.util
import re
import sys
from pathlib import Path

from reluctant.linearization import linearize
from reluctant.methods.base import MaskMethod

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_the_example_method_is_a_whole_method(tmp_path, trained, few_digits, fabric, monkeypatch):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "widest.py"
    file.write_text(code[1])
    spec = importlib.util.spec_from_file_location("widest", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "widest", module)
    spec.loader.exec_module(module)
    method = module.Widest.from_json({"images": "32"})
    assert isinstance(method, MaskMethod)
    assert "Paper:" in method.header()
    small = linearize(trained, method, "10%", few_digits, fabric=fabric)
    assert small.mask.kept == small.sites.total // 10


def test_the_steps_are_six():
    section = TEXT.split("## Add a method in six lines")[1].split("A whole one")[0]
    assert re.findall(r"^(\d)\. ", section, re.MULTILINE) == ["1", "2", "3", "4", "5", "6"]

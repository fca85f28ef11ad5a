"""The public face: sorted, complete, each name what it says, and cheap to import."""

import importlib
import subprocess
import sys
import types

import reluctant


def test_all_is_sorted_and_every_name_is_there():
    assert sorted(reluctant.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)) == reluctant.__all__
    assert set(reluctant._MODULE) == set(reluctant.__all__)
    for name in reluctant.__all__:
        assert not isinstance(getattr(reluctant, name), types.ModuleType), name


def test_a_public_name_stays_itself_when_its_module_is_imported():
    for module in set(reluctant._MODULE.values()):
        importlib.import_module(module)
    for name, module in reluctant._MODULE.items():
        assert getattr(reluctant, name) is getattr(importlib.import_module(module), name)


def test_importing_is_cheap():
    code = (
        "import sys, reluctant; print(sorted(m for m in ('torch', 'numpy', 'jax', 'spu', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_neither_torch_nor_spu():
    code = (
        "import sys; sys.argv=['reluctant','--help']; import reluctant.cli.main as m\n"
        "try: m.main()\nexcept SystemExit: print(sorted(x for x in ('torch','jax','spu') if x in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")

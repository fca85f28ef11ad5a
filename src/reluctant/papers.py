"""What the first lines of a method's or a design's file say of its paper."""

import inspect
import re
import sys


def header(kind: type) -> str:
    """Return the docstring of the file in which ``kind`` is defined: paper, deviations, symbols."""
    return inspect.getdoc(sys.modules[kind.__module__]) or ""


def citation(kind: type) -> str:
    """Return the paper that the header names, on one line: of several authors the first, of remarks none."""
    found = re.search(r"^Paper: +(.*?)(?=^\S|\Z)", header(kind), re.MULTILINE | re.DOTALL)
    paper = re.split(r"; |(?<=\d)\. ", " ".join(found[1].split()) if found else "none")[0]
    return re.sub(r"^([A-Z][\w-]+)(?:, [A-Z][\w-]+)+(?: et al)?\. ", r"\1 et al. ", paper).rstrip(".")

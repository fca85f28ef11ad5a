"""What the first lines of a method's, a design's or a search's file say of its paper."""

import inspect
import re
import sys


class FromPaper:
    """Something that was published, and says where in the docstring of its file."""

    @classmethod
    def header(cls) -> str:
        """Return the docstring of the file: paper, deviations, symbols."""
        return inspect.getdoc(sys.modules[cls.__module__]) or ""

    @classmethod
    def citation(cls) -> str:
        """Return the paper that the header names, on one line: of several authors the first, of remarks none."""
        found = re.search(r"^Paper: +(.*?)(?=^\S|\Z)", cls.header(), re.MULTILINE | re.DOTALL)
        paper = re.split(r"; |(?<=\d)\. ", " ".join(found[1].split()) if found else "none")[0]
        return re.sub(r"^([A-Z][\w-]+)(?:, [A-Z][\w-]+)+(?: et al)?\. ", r"\1 et al. ", paper).rstrip(".")

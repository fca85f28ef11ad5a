"""``python -m reluctant``: the same as ``reluctant``."""

from reluctant.cli.main import main

main()

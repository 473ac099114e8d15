"""The scripts of `benchmarks/` import each other by their file names."""

import sys

from support.process import ROOT

sys.path.append(str(ROOT / "benchmarks"))

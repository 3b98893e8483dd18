"""Modules that the benchmarks share. The benchmarks run from a checkout, whether the package is installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

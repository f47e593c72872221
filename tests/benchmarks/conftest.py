"""The benchmarks are scripts, not a package: their folder goes on the path, as it does when one is started."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

"""The parts of `benchmarks/rivals.py`: one file for each rival, one idea each. Nothing of this is in the product."""

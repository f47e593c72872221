"""What `run.py` and `compare.py` are made of."""

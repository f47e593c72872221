"""Balanced sampling: noise, quotas, the loop and the pipeline. Nothing here imports torch."""

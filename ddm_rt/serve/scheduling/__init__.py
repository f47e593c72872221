"""Requests share one batch: who waits, who runs, and what each gets. Needs no web framework."""

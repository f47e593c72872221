"""Comparing two configurations, and recording that one may take the place of the other."""

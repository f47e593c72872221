"""Candidate factors: ways in which training images differ, for a person to name and accept."""

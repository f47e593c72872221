"""Auditing any folder of images: several judges, rules that are set before, and one record for page, JSON and card."""

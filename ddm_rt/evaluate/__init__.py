"""Measuring what was sampled: judge, fairness, quality, report. Labels and judges live here and nowhere below."""

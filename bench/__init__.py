"""Measurements of d8mesh beside others, in ratios within one run: `start_d8.py bench`."""

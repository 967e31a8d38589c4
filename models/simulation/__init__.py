"""Brains with a known effect of age, made from the average brain: demo data and ground truth."""

"""Measuring segmentations against labels."""

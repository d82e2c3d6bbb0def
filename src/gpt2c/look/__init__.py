"""Capture and change what a model computes."""

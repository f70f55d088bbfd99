"""Weights in and out: models by name, other trainers' checkpoints, and exports that other libraries open."""

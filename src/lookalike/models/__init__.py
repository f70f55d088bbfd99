"""Encoders: backbones, heads, norms."""

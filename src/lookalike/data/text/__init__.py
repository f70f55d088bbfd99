"""Texts and captions."""

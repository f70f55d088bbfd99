"""Boxes, outlines and points that people drew into pictures."""

"""A run as one self-contained page: curves, views, nearest neighbours, tables."""

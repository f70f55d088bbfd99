"""``lookalike explore``: a page on this machine over a table of embeddings, to look, search, name and decide."""

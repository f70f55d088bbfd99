"""From what a person names to pixels: listing, decoding, order and batches."""

"""Keys, dictionary, objective: how the encoder learns."""

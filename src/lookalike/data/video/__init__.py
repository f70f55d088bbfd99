"""Videos: frames by number."""

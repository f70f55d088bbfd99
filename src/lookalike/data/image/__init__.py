"""Pictures: decoding, folders, masks."""

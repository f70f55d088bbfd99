"""What a person may name as data, and how each kind is opened."""

"""What makes two views of one example."""

"""Between two homes: versions that a node follows, and answers that it hands back."""

"""One function or mechanism at a time."""

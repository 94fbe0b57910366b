"""A paper's tables, at a size that two CPU cores run."""

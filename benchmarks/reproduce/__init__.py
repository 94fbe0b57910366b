"""The tables of papers, at a size for two CPU cores."""

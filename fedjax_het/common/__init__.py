"""Tools that every room uses: errors, checks of options, files and arrays, shared types."""

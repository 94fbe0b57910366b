"""Tools that every room uses: errors, checks of options, JSON on disk, shared types."""

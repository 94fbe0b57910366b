"""What every room uses: errors, options held to signatures, JSON on disk, shared types."""

"""Memory and compilations as cohorts grow."""

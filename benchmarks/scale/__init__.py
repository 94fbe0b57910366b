"""Memory and number of compilations as cohorts grow."""

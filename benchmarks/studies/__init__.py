"""Studies with the library, each a script of its own."""

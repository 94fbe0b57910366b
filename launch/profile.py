"""Prints the cost table of a model; see `fedjax_het.cli.profile`."""

from fedjax_het.cli import profile

if __name__ == "__main__":
    profile()

"""Tunes the methods of a configuration; see `fedjax_het.cli.sweep`."""

from fedjax_het.cli import sweep

if __name__ == "__main__":
    sweep()

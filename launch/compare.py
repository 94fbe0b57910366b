"""Compares methods and seeds on the same data and fleet; see `fedjax_het.cli.compare`."""

from fedjax_het.cli import compare

if __name__ == "__main__":
    compare()

"""Trains one configuration; see `fedjax_het.cli.train`."""

from fedjax_het.cli import train

if __name__ == "__main__":
    train()

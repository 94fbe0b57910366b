"""Rebuilds a report page from a work directory; see `fedjax_het.cli.report`."""

from fedjax_het.cli import report

if __name__ == "__main__":
    report()

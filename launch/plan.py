"""Plans deadlines and batches without training; see `fedjax_het.cli.plan`."""

from fedjax_het.cli import plan

if __name__ == "__main__":
    plan()

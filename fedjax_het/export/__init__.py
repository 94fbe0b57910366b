"""From the simulation to real devices: the same methods over the transport of another framework."""

from fedjax_het.export.apps import Apps, flower

__all__ = ["Apps", "flower"]

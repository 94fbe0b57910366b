"""Placement of programs on one device, on several devices, or on those of several processes.

The clients of a group are sharded over a mesh with one axis, `clients`; model and data are copied
to every device. Several processes (`jax.distributed`) run the same host program on the same inputs
and share one mesh, so that each process holds the results of all.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree

AXIS = "clients"


def check_devices(devices: int) -> None:
    """Raises `InputError` unless every process has this many devices."""
    available = jax.local_device_count()
    require(
        1 <= devices <= available,
        f"devices = {devices}",
        f"must be between 1 and the {available} local device(s)",
        "use fewer (a CPU is divided by jax.config.update('jax_num_cpu_devices', N) before JAX is "
        "used, or by XLA_FLAGS=--xla_force_host_platform_device_count=N)",
    )


class Placement(NamedTuple):
    """The devices of an engine.

    Attributes:
      mesh: mesh of all devices; None for only the first device of this process.
    """

    mesh: jax.sharding.Mesh | None = None

    @property
    def size(self) -> int:
        """Number of devices of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    def whole(self, tree: PyTree) -> PyTree:
        """Copies the tree to every device."""
        if self.mesh is None:
            return tree
        mesh, sharding = self.mesh, NamedSharding(self.mesh, PartitionSpec())
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
                return leaf
            own = [jax.device_put(leaf, device) for device in mesh.local_devices]
            return jax.make_array_from_single_device_arrays(np.shape(leaf), sharding, own)

        return jax.tree.map(put, tree)

    def split(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Splits the tree's NumPy arrays along an axis, one part per device."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))
        return jax.tree.map(
            lambda a: jax.make_array_from_callback(a.shape, sharding, a.__getitem__), tree
        )

    def local(self, tree: PyTree) -> PyTree:
        """The copy on this process's first device, of a tree with a copy on every device."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda a: a.addressable_data(0), tree)


def place(devices: int) -> Placement:
    """The first `devices` devices of every process."""
    if devices * jax.process_count() == 1:
        return Placement()
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    chosen = [d for _, own in sorted(by_process.items()) for d in own[:devices]]
    return Placement(jax.sharding.Mesh(np.asarray(chosen), (AXIS,)))

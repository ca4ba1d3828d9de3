"""k workers on any number of devices: the only file that names a mesh axis.

The number of workers k and their images n belong to the experiment, the devices to the machine. A
minibatch of kn images is one array of shape (A, kn/A, ...), A being the accumulation steps. Each of
its A parts is divided evenly among the D devices, and each device holds whole workers, so that no
batch normalisation statistic ever crosses a device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import Config, UsageError

AXIS = "data"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of one experiment, laid out over the devices of one machine or cluster."""

    num_workers: int
    batch_size_per_worker: int
    accumulation_steps: int
    mesh: Mesh
    unroll_accumulation: bool
    """Whether the accumulation steps are written out one after the other, not as a loop."""
    joins_reduction: bool
    """Whether all that is reduced is laid out as one array for it."""

    @property
    def batch_size(self) -> int:
        """The minibatch kn."""
        return self.num_workers * self.batch_size_per_worker

    @property
    def num_parts(self) -> int:
        """Into how many slices, one after the other or side by side, a minibatch is divided."""
        return self.accumulation_steps * self.mesh.devices.size

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds whole: parameters, statistics, metrics."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """Of a minibatch: arrays of shape (A, kn/A, ...)."""
        return NamedSharding(self.mesh, PartitionSpec(None, AXIS))

    @property
    def local(self) -> np.ndarray:
        """The workers whose images this process feeds, in the order of its rows of a minibatch.

        Worker j has images [j·n, (j + 1)·n) of the minibatch, whatever the devices.
        """
        order = np.arange(self.num_workers).reshape(
            self.accumulation_steps, self.mesh.devices.size, -1
        )
        mine = [
            position
            for position, device in enumerate(self.mesh.devices.flat)
            if device.process_index == jax.process_index()
        ]
        return order[:, mine].reshape(-1)

    def to_devices(self, rows: np.ndarray) -> jax.Array:
        """Assemble a minibatch of shape (A, kn/A, ...) of the rows that each process feeds.

        Args:
            rows: this process's images or labels, (len(local) · n, ...), in the order of `local`.
        """
        parts = rows.reshape(self.accumulation_steps, -1, *rows.shape[1:])
        shape = (self.accumulation_steps, self.batch_size // self.accumulation_steps)
        return jax.make_array_from_process_local_data(
            self.divided, parts, (*shape, *rows.shape[1:])
        )

    def sum_over_minibatch(
        self, function: Callable[[Any, Any], T], constants: Any, minibatch: Any
    ) -> T:
        """Sum `function(constants, part)` over all parts of a minibatch, in one reduction.

        Each device sums over its slice of each accumulation step, and only the total crosses
        devices. Under plain `jit` the compiler would reduce inside the loop, once a step.

        Args:
            function: of the constants and a slice of the minibatch, (kn/(A·D), ...), to a tree.
            constants: a tree that every device holds whole.
            minibatch: a tree of arrays of shape (A, kn/A, ...).
        """

        def on_one_device(constants: Any, parts: Any) -> T:
            # Told apart by device, so that differentiating with respect to them reduces nothing.
            constants = jax.lax.pcast(constants, AXIS, to="varying")

            def part(index: int | jax.Array) -> T:
                return function(constants, jax.tree.map(lambda x: x[index], parts))

            def add(index: int | jax.Array, total: T) -> T:
                return jax.tree.map(jnp.add, total, part(index))

            if self.unroll_accumulation:
                total = part(0)
                for index in range(1, self.accumulation_steps):
                    total = add(index, total)
            else:
                zeros = jax.tree.map(
                    lambda x: jax.lax.pcast(jnp.zeros(x.shape, x.dtype), AXIS, to="varying"),
                    jax.eval_shape(part, 0),
                )
                total = jax.lax.fori_loop(0, self.accumulation_steps, add, zeros)
            if not self.joins_reduction:
                return jax.lax.psum(total, AXIS)
            joined, separate = ravel_pytree(total)
            return separate(jax.lax.psum(joined, AXIS))

        return self._on_each_device(on_one_device, PartitionSpec())(constants, minibatch)

    def map_over_minibatch(
        self, function: Callable[[Any, Any], T], constants: Any, minibatch: Any
    ) -> T:
        """Put together what `function(constants, part)` says of each image of a minibatch.

        Args:
            function: likewise, to a tree of arrays of shape (kn/(A·D), ...).
            constants: likewise.
            minibatch: likewise.

        Returns:
            That tree with arrays of shape (A, kn/A, ...).
        """

        def on_one_device(constants: Any, parts: Any) -> T:
            if self.unroll_accumulation:
                outcomes = [
                    function(constants, jax.tree.map(lambda x, index=index: x[index], parts))
                    for index in range(self.accumulation_steps)
                ]
                return jax.tree.map(lambda *xs: jnp.stack(xs), *outcomes)
            return jax.lax.map(lambda part: function(constants, part), parts)

        return self._on_each_device(on_one_device, self.divided.spec)(constants, minibatch)

    def _on_each_device(self, function: Callable[[Any, Any], T], out_specs: PartitionSpec) -> Any:
        in_specs = (PartitionSpec(), self.divided.spec)
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


def make_workers(config: Config, devices: Sequence[Any] | None = None) -> Workers:
    """Lay the workers of a run out over devices.

    Args:
        config: of the run.
        devices: of JAX; all that it has, if left out.

    Raises:
        UsageError: if a device would hold a part of a worker.
    """
    devices = jax.devices() if devices is None else devices
    num_devices = len(devices)
    is_cpu = devices[0].platform == "cpu"
    parts = num_devices * config.accumulation_steps
    if config.num_workers % parts:
        raise UsageError(
            f"--num-workers is {config.num_workers}; it must be a multiple of devices × "
            f"accumulation steps = {num_devices} × {config.accumulation_steps} = {parts}"
        )
    if config.noise_scale and parts < 2:
        raise UsageError(
            f"--noise-scale compares parts of a minibatch, and devices × accumulation steps is "
            f"{parts}; it must be at least 2: take --accumulation-steps 2 or more"
        )
    return Workers(
        num_workers=config.num_workers,
        batch_size_per_worker=config.batch_size_per_worker,
        accumulation_steps=config.accumulation_steps,
        mesh=jax.make_mesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices),
        # XLA's fast convolutions for CPUs are found only outside loops: inside one, a step of the
        # digits takes 16 times as long. Elsewhere the loop keeps memory and compilation small.
        unroll_accumulation=config.accumulation_steps == 1 or is_cpu,
        # Between processes on CPUs each array is reduced by itself, and waits for the other side:
        # the gradients of ResNet-50 take 0.8 s on two pinned cores, and 0.12 as one array.
        joins_reduction=is_cpu and jax.process_count() > 1,
    )

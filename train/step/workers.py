"""k workers on any number of devices: the only file that names a mesh axis.

The number of workers k and their images n belong to the experiment, devices to the machine. A
minibatch of kn images is one array of shape (A, kn/A, ...) for A accumulation steps. Each of the A
parts is sharded evenly over the D devices. A device holds a whole number of workers, so no batch
normalization statistic crosses a device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import Config, Experiment
from train.errors import UsageError

AXIS = "data"
PIXELS_AT_ONCE = 2**14  # on a CPU; 1 MiB with the 16 channels of resnet8's first stage

Device = Any  # jax.Device, which JAX does not export as a type

C = TypeVar("C")
M = TypeVar("M")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of one experiment on the devices of one machine or cluster."""

    num_workers: int
    batch_size_per_worker: int
    accumulation_steps: int
    mesh: Mesh
    passes: int
    """Parts into which a device splits its images of an accumulation step, one after another."""
    joins_reduction: bool
    """Whether everything that is all-reduced is concatenated into one array first."""

    @property
    def batch_size(self) -> int:
        """Images in a minibatch: kn."""
        return self.num_workers * self.batch_size_per_worker

    @property
    def num_parts(self) -> int:
        """Slices of a minibatch: accumulation steps × devices × passes."""
        return self.accumulation_steps * self.mesh.devices.size * self.passes

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that every device holds whole: parameters, statistics, metrics."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Sharding of a minibatch: arrays of shape (A, kn/A, ...)."""
        return NamedSharding(self.mesh, PartitionSpec(None, AXIS))

    @property
    def local(self) -> np.ndarray:
        """Indices of the workers that this process feeds, in the order of its rows.

        Worker j has images [j·n, (j + 1)·n) of the minibatch on any number of devices.
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
        """Assemble a minibatch of shape (A, kn/A, ...) from the rows of all processes.

        Args:
            rows: this process's images or labels, (len(local) · n, ...), in the order of `local`.
        """
        parts = rows.reshape(self.accumulation_steps, -1, *rows.shape[1:])
        shape = (self.accumulation_steps, self.batch_size // self.accumulation_steps)
        return jax.make_array_from_process_local_data(
            self.sharded, parts, (*shape, *rows.shape[1:])
        )

    def sum_over_minibatch(self, function: Callable[[C, M], T], constants: C, minibatch: M) -> T:
        """Sum `function(constants, part)` over all parts of a minibatch with one all-reduce.

        Each device sums over its slices; only the total crosses devices. Under plain `jit` the
        compiler would all-reduce once per accumulation step.

        Args:
            function: function of the constants and a slice of the minibatch, (kn/P, ...) for P
                parts, that returns a tree.
            constants: replicated tree.
            minibatch: tree of arrays of shape (A, kn/A, ...).
        """
        num_slices = self.accumulation_steps * self.passes

        def on_one_device(constants: C, slices: M) -> T:
            # Mark as device-varying; otherwise autodiff would insert a psum for every part.
            constants = jax.lax.pcast(constants, AXIS, to="varying")
            parts = self._parts(slices)

            def part(index: int | jax.Array) -> T:
                return function(constants, jax.tree.map(lambda x: x[index], parts))

            def add(index: jax.Array, total: T) -> T:
                return jax.tree.map(jnp.add, total, part(index))

            if num_slices == 1:
                total = part(0)
            else:
                zeros = jax.tree.map(
                    lambda x: jax.lax.pcast(jnp.zeros(x.shape, x.dtype), AXIS, to="varying"),
                    jax.eval_shape(part, 0),
                )
                total = jax.lax.fori_loop(0, num_slices, add, zeros)
            if not self.joins_reduction:
                return jax.lax.psum(total, AXIS)
            joined, separate = ravel_pytree(total)
            return separate(jax.lax.psum(joined, AXIS))

        return self._on_each_device(on_one_device, PartitionSpec())(constants, minibatch)

    def map_over_minibatch(self, function: Callable[[C, M], T], constants: C, minibatch: M) -> T:
        """Apply `function(constants, part)` to every part and concatenate the per-image results.

        Args:
            function: function of the constants and a slice of the minibatch, (kn/P, ...) for P
                parts, that returns a tree of arrays of shape (kn/P, ...).
            constants: replicated tree.
            minibatch: tree of arrays of shape (A, kn/A, ...).

        Returns:
            The tree with arrays of shape (A, kn/A, ...).
        """

        def on_one_device(constants: C, slices: M) -> T:
            outcomes = jax.lax.map(lambda part: function(constants, part), self._parts(slices))
            return jax.tree.map(
                lambda x: x.reshape(self.accumulation_steps, -1, *x.shape[2:]), outcomes
            )

        return self._on_each_device(on_one_device, self.sharded.spec)(constants, minibatch)

    def _parts(self, slices: M) -> M:
        """Split a device's slices, (A, kn/(A·D), ...), into those of each pass."""
        num_slices = self.accumulation_steps * self.passes
        return jax.tree.map(lambda x: x.reshape(num_slices, -1, *x.shape[2:]), slices)

    def _on_each_device(
        self, function: Callable[[C, M], T], out_specs: PartitionSpec
    ) -> Callable[[C, M], T]:
        in_specs = (PartitionSpec(), self.sharded.spec)
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


def make_workers(config: Config, devices: Sequence[Device] | None = None) -> Workers:
    """Lay out the workers of a run over devices.

    Args:
        config: configuration of the run.
        devices: devices to use. Default: all that JAX has.

    Raises:
        UsageError: if a device would hold a part of a worker.
    """
    experiment, accumulation_steps = config.experiment, config.machine.accumulation_steps
    devices = jax.devices() if devices is None else devices
    is_cpu = devices[0].platform == "cpu"
    parts = len(devices) * accumulation_steps
    if experiment.num_workers % parts:
        raise UsageError(
            f"--num-workers is {experiment.num_workers}; it must be a multiple of devices × "
            f"accumulation steps = {len(devices)} × {accumulation_steps} = {parts}, such as "
            f"--num-workers {parts * max(1, experiment.num_workers // parts)}"
        )
    if experiment.noise_scale and parts < 2:
        raise UsageError(
            f"--noise-scale compares parts of a minibatch, and devices × accumulation steps is "
            f"{parts}; it must be at least 2: pass --accumulation-steps 2 or more"
        )
    return Workers(
        num_workers=experiment.num_workers,
        batch_size_per_worker=experiment.batch_size_per_worker,
        accumulation_steps=accumulation_steps,
        mesh=jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices),
        passes=_passes_on_cpu(experiment, experiment.num_workers // parts) if is_cpu else 1,
        # Between processes on CPUs each array is all-reduced separately and blocks on the other
        # side: the gradients of ResNet-50 take 0.8 s on two pinned cores, and 0.12 s as one array.
        joins_reduction=is_cpu and jax.process_count() > 1,
    )


def _passes_on_cpu(experiment: Experiment, num_workers: int) -> int:
    """Number of parts into which a CPU splits its workers, so that activations fit its caches.

    In fewer passes a step of 512 small images takes up to 1.7 times as long (benchmarks/README.md).
    The noise scale is estimated from the parts, so their size must not depend on the platform.
    """
    if experiment.noise_scale:
        return 1
    pixels = experiment.batch_size_per_worker * experiment.image_size**2
    return next(
        passes
        for passes in range(1, num_workers + 1)
        if num_workers % passes == 0
        and (passes == num_workers or num_workers // passes * pixels <= PIXELS_AT_ONCE)
    )

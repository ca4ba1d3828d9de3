"""TPU slices that need not exist, described for the compiler."""

import os

import jax
from jax.experimental import topologies

from train.errors import UsageError
from train.step.workers import Device


def stay_off_devices() -> None:
    """Keep JAX and the TPU compiler from looking for real devices. Call before JAX's first use."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU host to ask for its slice
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # required; any value works
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process holds a TPU
    }


def base_slice(kind: str) -> str:
    """Name of the 8-chip slice of a kind of TPU."""
    return f"{kind}:2x2x2" if kind in ("v4", "v5p") else f"{kind}:2x4"


def slice_devices(topology: str) -> list[Device]:
    """Devices of a TPU slice that need not exist, one per chip.

    Args:
        topology: name of the slice, such as v5e:16x16.

    Raises:
        UsageError: if there is no such slice, or the compiler is missing.
    """
    # The two cores of a v4 chip are separate devices unless they are joined, as Google does.
    joined = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **joined)
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"--topology {topology} is not a slice: {line}") from None
    except RuntimeError:
        raise UsageError(
            "the TPU compiler is missing; install it with: pip install -c constraints.txt "
            "-e '.[train,pod]'"
        ) from None
    return list(described.devices)

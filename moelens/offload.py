"""The machine and the memory of a device, put together: lanes, ops, plan and placement."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moelens.devices import CpuDevice, CudaDevice, Device, EmulatedDevice
from moelens.errors import ConfigError
from moelens.machine.cpu import CpuMachine
from moelens.machine.emulated import EmulatedMachine
from moelens.machine.machine import Machine
from moelens.memory.device import DeviceMemory, SharedMemory
from moelens.memory.layout import SlabLayout
from moelens.memory.separate import SeparateMemory, transfer_bytes
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops
from moelens.ops.native import NativeOps, schedulable_cores
from moelens.plan import Placement, Plan
from moelens.planning.device import PARTS, DeviceSizes, fit, fixed, for_device
from moelens.planning.placement import LayerBytes


@dataclass(frozen=True)
class Side:
    """What runs a step: the machine's lanes and the device's memory."""

    machine: Machine
    memory: DeviceMemory


def host_threads(device: Device, asked: int | None) -> int | None:
    """Threads for the host's ops; None: all cores. Those of an emulated device are not the host's."""
    if asked is not None or not isinstance(device, EmulatedDevice):
        return asked
    return max(1, schedulable_cores() - device.threads)


def check_device(device: Device) -> None:
    """Raise ConfigError when this machine does not have it."""
    if isinstance(device, CudaDevice):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ConfigError(
            f"device='cuda:{device.index}' can't be used: {found} GPUs are found, and this version of moelens does not "
            "compute on one yet. Use 'cpu'."
        )


def plan_device(
    device: Device, plan: Plan, architecture: Architecture, ops: Ops, *, given: bool
) -> tuple[Plan, Placement | None]:
    """The plan with what the device needs of it, and what lies on the device; a `given` plan stays as it is.

    Raises CapacityError when the device's memory is too small.
    """
    if not isinstance(device, EmulatedDevice):
        return plan, None
    config, sizes = architecture.config, _sizes(architecture, ops, plan.parts if given else PARTS)
    if given:
        return plan, fixed(plan, config, sizes, device.memory_bytes)
    return fit(for_device(plan, sizes), config, sizes, device.memory_bytes)


def open_device(
    device: Device, architecture: Architecture, weights: WeightStore, ops: Ops, plan: Plan, placement: Placement | None
) -> Side:
    """Start the lanes, and bring to the device what stays there."""
    config = architecture.config
    if isinstance(device, EmulatedDevice):
        assert placement is not None
        link = device.link_bytes_per_second
        memory = SeparateMemory(config, weights, NativeOps(device.threads), placement, plan)
        return Side(EmulatedMachine(link, link), memory)
    assert isinstance(device, CpuDevice)
    return Side(CpuMachine(), SharedMemory(weights, ops, len(config.layers)))


def _sizes(architecture: Architecture, ops: Ops, parts: int) -> DeviceSizes:
    config = architecture.config
    layouts = [SlabLayout.of(specs, ops, config.dtype) for specs in architecture.layer_tensors]
    layers = [LayerBytes(layout.front.nbytes, layout.block.nbytes) for layout in layouts]
    resident = SlabLayout.of(architecture.resident_tensors, ops, config.dtype).nbytes
    return DeviceSizes(layers, resident, lambda tokens: transfer_bytes(config, ops, tokens, parts))

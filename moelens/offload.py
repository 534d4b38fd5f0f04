"""The machine and the memory of a device, put together: lanes, ops, plan and placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.devices import CpuDevice, CudaDevice, Device, EmulatedDevice
from moelens.errors import ConfigError
from moelens.machine.cpu import CpuMachine
from moelens.machine.cuda import CudaMachine, TorchDriver
from moelens.machine.emulated import EmulatedMachine
from moelens.machine.machine import Machine
from moelens.machine.numa import near_cores
from moelens.memory.activations import ActivationPool
from moelens.memory.cuda import CudaStore, gpu_budget
from moelens.memory.device import DeviceMemory, SharedMemory
from moelens.memory.layout import SlabLayout
from moelens.memory.separate import SeparateMemory, transfer_bytes
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.models.config import ModelConfig
from moelens.ops.cuda import CudaOps, load_kernels
from moelens.ops.interface import Ops
from moelens.ops.native import NativeOps, schedulable_cores
from moelens.plan import Placement, Plan
from moelens.planning.device import DeviceSizes, placed
from moelens.planning.forecast import unmeasured, unmeasured_emulation
from moelens.planning.placement import LayerBytes
from moelens.planning.pricing import StepPricing


@dataclass(frozen=True)
class Side:
    """What runs a step: the machine's lanes and the device's memory."""

    machine: Machine
    memory: DeviceMemory


@dataclass(frozen=True)
class Budget:
    """What a user lets moelens take of a GPU's memory: bytes, or else a share of all of it."""

    utilization: float | None = None
    memory_bytes: int | None = None


NO_BUDGET = Budget()


def host_threads(device: Device, asked: int | None) -> int | None:
    """Threads for the host's ops; None: all cores. Those of an emulated device are not the host's."""
    if asked is not None or not isinstance(device, EmulatedDevice):
        return asked
    return max(1, schedulable_cores() - device.threads)


def check_device(device: Device) -> None:
    """Raise ConfigError when this machine does not have it, KernelError when moelens was built without its kernels."""
    if isinstance(device, CudaDevice):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= found:
            raise ConfigError(
                f"device='cuda:{device.index}' can't be used: torch {torch.__version__} finds {found} GPUs. Install a "
                "torch for CUDA and the GPU's driver, or use 'cpu'."
            )
        load_kernels()


def device_sizes(
    device: Device, architecture: Architecture, ops: Ops, budget: Budget = NO_BUDGET
) -> DeviceSizes | None:
    """A device's memory and what it would hold of a model, to the byte; None where the host does all.

    `budget` is of a GPU. Raises CapacityError when it has less.
    """
    if isinstance(device, CpuDevice):
        return None
    if isinstance(device, EmulatedDevice):
        memory_bytes = device.memory_bytes
    else:
        memory_bytes = gpu_budget(*torch.cuda.mem_get_info(device.index), budget.utilization, budget.memory_bytes)
    config = architecture.config
    layers, resident = slab_bytes(architecture, ops)

    def transfers(plan: Plan) -> int:
        return transfer_bytes(config, ops, plan.step_tokens, plan.parts, finished=plan.experts_on_host)

    return DeviceSizes(memory_bytes, layers, resident, transfers, same_bits=isinstance(device, EmulatedDevice))


def place_plan(
    device: Device, plan: Plan, architecture: Architecture, ops: Ops, budget: Budget = NO_BUDGET
) -> Placement | None:
    """What lies on the device under a plan that is given; None where the host does all.

    `budget` is of a GPU. Raises CapacityError when the device's memory is too small.
    """
    sizes = device_sizes(device, architecture, ops, budget)
    return None if sizes is None else placed(plan, architecture.config, sizes)


def open_device(
    device: Device,
    architecture: Architecture,
    weights: WeightStore,
    ops: NativeOps,
    plan: Plan,
    placement: Placement | None,
    pricing: StepPricing | None = None,
) -> Side:
    """Start the lanes, and bring to the device what stays there. `pricing` decides what the host finishes, if the plan
    lets it."""
    config = architecture.config
    divide = pricing if plan.experts_on_host else None
    if isinstance(device, EmulatedDevice):
        assert placement is not None
        link = device.link_bytes_per_second
        made = ActivationPool(placement.activation_bytes)
        device_ops = NativeOps(device.threads, empty=made.empty)
        memory = SeparateMemory(config, weights, device_ops, placement, plan, divide=divide)
        return Side(EmulatedMachine(link, link), memory)
    if isinstance(device, CudaDevice):
        assert placement is not None
        return _open_gpu(device, config, weights, ops, plan, placement, divide)
    return Side(CpuMachine(None if plan.disk_layers else ops.calls), SharedMemory(weights, ops, config))


def price_steps(
    device: Device,
    config: ModelConfig,
    plan: Plan,
    placement: Placement | None,
    measured: CostModel | None = None,
) -> StepPricing | None:
    """What steps take: first as the machine was `measured`, or by guesses and an emulated device's declared link; soon
    by what they are measured to take.
    """
    if placement is None:
        return None
    if measured is not None:
        return StepPricing(measured)
    hardware = guessed_hardware(device, plan.threads)
    return StepPricing(CostModel(config, hardware, load_chunks=plan.load_chunks, placement=placement))


def guessed_hardware(device: Device, threads: int) -> HardwareSpec:
    """A machine that nobody measured."""
    if isinstance(device, EmulatedDevice):
        return unmeasured_emulation(threads, device)
    return unmeasured(threads, has_device=isinstance(device, CudaDevice))


def _open_gpu(
    device: CudaDevice,
    config: ModelConfig,
    weights: WeightStore,
    ops: NativeOps,
    plan: Plan,
    placement: Placement,
    divide: StepPricing | None,
) -> Side:
    """Not run on a GPU yet."""
    where = torch.device("cuda", device.index)
    source = weights.arena.view(0, torch.uint8, (weights.nbytes,))

    def make_store(nbytes: int) -> CudaStore:
        return CudaStore(nbytes, where, source)

    memory = SeparateMemory(config, weights, CudaOps(ops, where), placement, plan, make_store, divide)
    torch.cuda.synchronize(where)  # what stays was copied by a stream that the lanes don't wait for
    properties: Any = torch.cuda.get_device_properties(where)  # whose stub lacks these
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return Side(CudaMachine(TorchDriver(device.index), near_cores(address)), memory)


def slab_bytes(architecture: Architecture, ops: Ops) -> tuple[tuple[LayerBytes, ...], int]:
    """Bytes of each layer's weights, and of those that belong to none, in the storage order of `ops`."""
    dtype = architecture.config.dtype
    layouts = [SlabLayout.of(specs, ops, dtype) for specs in architecture.layer_tensors]
    layers = tuple(LayerBytes(layout.front.nbytes, layout.block.nbytes) for layout in layouts)
    return layers, SlabLayout.of(architecture.resident_tensors, ops, dtype).nbytes

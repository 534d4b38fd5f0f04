"""An op has one name: in the interface, the reference, the native ops, the binding and the kernels' files."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
from sources import ROOT

from moelens.ops.cuda import CudaOps
from moelens.ops.interface import Ops
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps

OPS = {name: value for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")}
# Ops that say in Python how things lie in memory, and one whose work another's kernel does: a down projection is a
# matrix like any other.
WITHOUT_A_KERNEL = {"matrix_shape", "gate_up_shape", "down_shape", "kv_shapes", "pack_down"}
# Ops whose binding puts other kernels together.
COMPOSED = {
    "sigmoid_scores": ("linear", "sigmoid"),
    "project_qkv": ("rms_norm", "layer_norm", "linear", "split_qkv"),
    "project_and_route": ("linear", "rms_norm", "layer_norm", "route"),
}
# What the modules offer beside the ops.
BESIDE_OPS = {"available_isas", "best_isa", "finish", "read_memory", "multiply_registers"}
# What the device's ops offer beside them.
BESIDE_OPS_OF_A_DEVICE = {"read_kv", "experts_workspace_bytes"}
# Ops of a device that torch computes, or the host, or other ops in turn.
WITHOUT_A_DEVICE_KERNEL = WITHOUT_A_KERNEL | {
    "pack_matrix",
    "pack_gate_up",
    "embed",
    "project_qkv",
    "project_and_route",
    "scale",
    "attention",
    "mask_logits",
    "sample",
}

BINDINGS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc/cpu/bindings").glob("*"))
DEVICE_BINDINGS = (ROOT / "csrc/cuda/bindings.cpp").read_text(encoding="utf-8")
KERNELS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc/cpu/kernels").glob("*"))


def parameters(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def public_methods(implementation: type) -> set[str]:
    return {name for name, value in vars(implementation).items() if inspect.isfunction(value) and name[0] != "_"}


@pytest.mark.parametrize("implementation", [ReferenceOps, NativeOps])
def test_implementations_have_the_ops_and_nothing_else(implementation: type) -> None:
    assert public_methods(implementation) == set(OPS)


def test_a_devices_ops_have_besides_what_transfers_and_memory_need() -> None:
    assert public_methods(CudaOps) == set(OPS) | BESIDE_OPS_OF_A_DEVICE


@pytest.mark.parametrize("implementation", [ReferenceOps, NativeOps, CudaOps])
@pytest.mark.parametrize("name", OPS)
def test_arguments_are_the_interfaces(name: str, implementation: type) -> None:
    assert parameters(getattr(implementation, name)) == parameters(OPS[name])


@pytest.mark.parametrize("name", sorted(set(OPS) - WITHOUT_A_KERNEL))
def test_binding_and_kernel_have_the_ops_name(name: str) -> None:
    assert re.search(rf'def\(\s*"{name}"', BINDINGS), f"no binding is called {name}"
    for kernel in COMPOSED.get(name, (name,)):
        assert re.search(rf"\b{kernel}\b", KERNELS), f"no file in csrc/cpu/kernels has a kernel called {kernel}"


def test_bindings_are_ops() -> None:
    bound = set(re.findall(r'def\(\s*"(\w+)"', BINDINGS))
    assert bound <= set(OPS) | BESIDE_OPS, "a binding that is no op"


@pytest.mark.parametrize("name", sorted(set(OPS) - WITHOUT_A_DEVICE_KERNEL - set(COMPOSED)))
def test_a_devices_binding_has_the_ops_name(name: str) -> None:
    assert f'module.def("{name}"' in DEVICE_BINDINGS, f"no binding of the device is called {name}"
    assert any(
        re.search(rf"\bvoid {name}\(", path.read_text(encoding="utf-8")) for path in (ROOT / "csrc/cuda").glob("*.cu")
    ), f"no file in csrc/cuda starts {name}"


def test_a_devices_bindings_are_ops() -> None:
    bound = set(re.findall(r'module\.def\(\s*"(\w+)"', DEVICE_BINDINGS))
    assert bound <= set(OPS) | BESIDE_OPS_OF_A_DEVICE | {"set_seed", "count_devices"}

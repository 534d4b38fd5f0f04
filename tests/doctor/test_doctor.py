"""What the doctor says of machines that are made of files, and of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from moelens.doctor.checkup import examine, problems, to_json, to_text
from moelens.doctor.finding import Finding, size
from moelens.doctor.gpu import gpu_findings
from moelens.doctor.memory import lock_finding, memory_findings
from moelens.doctor.processor import isa_findings, processor_findings
from moelens.doctor.software import module_finding
from moelens.doctor.storage import folder_finding

CPU = "processor\t: {i}\nmodel name\t: Some CPU @ 3 GHz\nphysical id\t: {socket}\nflags\t\t: fpu avx2 fma avx512f\n\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_the_processor(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/cpuinfo": "".join(CPU.format(i=i, socket=i // 64) for i in range(128)),
            "sys/devices/system/node/node0/cpulist": "0-63\n",
            "sys/devices/system/node/node1/cpulist": "64-127\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
    )
    found = list(processor_findings(root))
    assert named(found, "processor").value == "Some CPU @ 3 GHz"
    assert named(found, "instruction flags").value == "avx2 fma avx512f"
    cores = named(found, "cores")
    assert "of 128 logical, 2 sockets, quota 0.5" in cores.value
    assert cores.problem is not None and "0.5 cores' time" in cores.problem
    numa = named(found, "NUMA")
    assert numa.value == "node0: cpus 0-63; node1: cpus 64-127"
    assert numa.remedy is not None and "numactl --interleave=all" in numa.remedy
    assert named(found, "clock governor").remedy == "sudo cpupower frequency-set -g performance"


def test_an_unknown_machine_is_no_error(tmp_path: Path) -> None:
    found = [*processor_findings(tmp_path), *memory_findings(tmp_path)]
    assert named(found, "NUMA").value == "not told by the system"
    assert named(found, "RAM").value == "not told by the system"


def test_memory(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\nSwapTotal: 1024 kB\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        },
    )
    found = list(memory_findings(root))
    assert named(found, "RAM").value == "8.0 GiB, 1.0 GiB available to this process"
    assert named(found, "RAM").problem == "less than 4.0 GiB is available"
    assert named(found, "swap").value == "1.0 MiB"
    huge = named(found, "transparent huge pages")
    assert huge.remedy is not None and huge.remedy.startswith("echo madvise")
    assert lock_finding(-1).value == "unlimited"
    assert lock_finding(8 << 20).value.startswith("8.0 MiB")


def test_the_instruction_set_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOELENS_CPU_ISA", raising=False)
    from moelens import _cpu

    assert next(isa_findings()).value.startswith(_cpu.best_isa())
    monkeypatch.setenv("MOELENS_CPU_ISA", "scalar")
    slow = next(isa_findings())
    assert slow.value == "scalar" and slow.problem is not None
    monkeypatch.setenv("MOELENS_CPU_ISA", "abacus")
    none = next(isa_findings())
    assert none.problem is not None and "'abacus'" in none.problem and none.remedy == "unset MOELENS_CPU_ISA"


def test_gpus() -> None:
    printed = {
        "nvidia-smi": "NVIDIA A, 24564, 550.1, 4, 16\nNVIDIA B, 8192, 550.1, 3, 8\n",
        "nvcc": "Cuda compilation tools, release 12.4, V12.4.99",
    }
    found = list(gpu_findings(lambda command: printed[command[0]]))
    assert found[0].value == "NVIDIA A, 24564 MiB, driver 550.1, PCIe 4 x16: 31.5 GB/s by its specification"
    assert found[0].problem is None
    assert found[1].problem == "its link has 8 lanes of 16"
    assert named(found, "CUDA toolkit").value == "12.4"
    assert [one.name for one in gpu_findings(lambda command: None)] == ["GPU"]


def test_how_a_module_was_built(tmp_path: Path) -> None:
    path = tmp_path / "_cpu.so"
    path.write_bytes(b"\x7fELF\x00GCC: (Debian 12.2.0-14) 12.2.0\x00...")
    plain = module_finding("moelens._cpu", path)
    assert plain.value.endswith("GCC: (Debian 12.2.0-14) 12.2.0") and plain.problem is None
    path.write_bytes(b"\x7fELF\x00clang version 18.1\x00__asan_init\x00")
    slow = module_finding("moelens._cpu", path)
    assert "clang version 18.1" in slow.value and slow.problem is not None


def test_a_folder_without_room(tmp_path: Path) -> None:
    found = folder_finding("hub cache", tmp_path / "a" / "b", free_bytes=1 << 20)
    assert found.value.endswith("(not made yet), 1.0 MiB free")
    assert found.problem == "less than 10.0 GiB is free" and "HF_HOME" in str(found.remedy)
    assert folder_finding("hub cache", tmp_path, free_bytes=1 << 40).problem is None


def test_this_machine() -> None:
    sections = examine()
    text = to_text(sections)
    for finding in problems(sections):
        assert finding.remedy and f"-> {finding.remedy}" in text
    assert named(list(sections["software"]), "moelens._cpu").problem is None
    assert to_json(sections)["problems"] == [vars(finding) for finding in problems(sections)]


@pytest.mark.parametrize(("nbytes", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text

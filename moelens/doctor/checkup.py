"""The whole examination: sections of findings, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moelens.doctor.finding import Finding
from moelens.doctor.gpu import gpu_findings
from moelens.doctor.memory import lock_finding, memory_findings
from moelens.doctor.processor import isa_findings, processor_findings
from moelens.doctor.software import module_findings, software_findings
from moelens.doctor.storage import storage_findings

Sections = Mapping[str, Sequence[Finding]]


def examine(root: Path = Path("/")) -> Sections:
    """Look at everything; `root` is where /proc and /sys are found."""
    return {
        "processor": [*processor_findings(root), *isa_findings()],
        "memory": [*memory_findings(root), lock_finding()],
        "GPU": list(gpu_findings()),
        "software": [*software_findings(), *module_findings()],
        "storage": list(storage_findings()),
    }


def problems(sections: Sections) -> list[Finding]:
    """The findings that something is wrong with."""
    return [finding for findings in sections.values() for finding in findings if finding.problem is not None]


def to_text(sections: Sections) -> str:
    """For a person: all facts, then each problem with its remedy."""
    lines: list[str] = []
    for title, findings in sections.items():
        lines.append(title)
        lines += [f"  {'!' if one.problem else ' '} {one.name}: {one.value}" for one in findings]
    wrong = problems(sections)
    lines.append("" if wrong else "\nNo problems found.")
    for one in wrong:
        lines += [f"! {one.name}: {one.problem}", f"  -> {one.remedy}"]
    return "".join(f"{line}\n" for line in lines)


def to_json(sections: Sections) -> dict[str, Any]:
    """For a program."""
    return {
        "sections": {title: [asdict(one) for one in findings] for title, findings in sections.items()},
        "problems": [asdict(one) for one in problems(sections)],
    }

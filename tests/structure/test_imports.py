"""Imports run one way: the layers of docs/architecture.md, as a table."""

from __future__ import annotations

import graphlib

import pytest
from sources import imported_modules, modules

# Plain data that everything may speak of.
RECORDS = {
    "errors",
    "sizes",
    "devices",
    "outputs",
    "sampling_values",
    "structured_outputs",
    "constraint",
    "sampling_params",
    "request",
    "plan",
    "models.config",
    "cost.routing",
    "cost.workload",
    "pipeline.task",
}

# Unit (a module, or a package with all that has no line of its own) -> the units that it may import.
# A package's modules may always import each other.
ALLOWED: dict[str, set[str]] = {
    # data records
    "errors": set(),
    "sizes": {"errors"},
    "devices": {"errors", "sizes"},
    "outputs": {"errors"},
    "sampling_values": {"errors", "outputs"},
    "structured_outputs": {"errors", "sampling_values"},
    "constraint": set(),
    "sampling_params": {"errors", "outputs", "sampling_values", "structured_outputs", "constraint"},
    "request": {"errors", "outputs", "sampling_params", "constraint"},
    "plan": {"errors"},
    "models.config": {"errors"},
    "cost.routing": {"models.config"},
    "cost.workload": {"errors"},
    "pipeline.task": {"cost.workload"},
    # how fast, as counts of work
    "cost": RECORDS,
    # what
    "ops": RECORDS,
    "ops.interface": {"errors"},
    "models": RECORDS | {"ops.interface"},
    "text": RECORDS,
    "stopping": RECORDS | {"text"},
    # where
    "machine": RECORDS,
    "memory": RECORDS | {"ops.interface", "models", "cost"},
    "checkpoint": RECORDS | {"ops.interface", "models", "memory"},
    # when
    "schedule": RECORDS | {"ops.interface"},
    # how
    "pipeline": RECORDS | {"cost", "ops.interface", "models.architecture", "memory", "machine", "schedule.batch"},
    # which configuration
    "planning": RECORDS | {"cost", "schedule", "pipeline", "machine.simulated"},
    "planning.reading": {"memory", "errors"},
    "planning.curves": RECORDS | {"cost", "models.architecture", "planning"},
    "planning.probe": RECORDS
    | {"cost", "ops", "ops.interface", "models", "models.architecture", "memory", "machine", "checkpoint"}
    | {"schedule", "schedule.batch", "pipeline", "stopping", "engine", "planning", "planning.curves"}
    | {"planning.reading", "planning.link", "devices", "offload"},
    "planning.link": RECORDS | {"machine", "memory", "models.config"},
    "planning.measured": {
        "cost",
        "devices",
        "errors",
        "models",
        "models.architecture",
        "models.config",
        "ops",
        "planning.probe",
    },
    "planning.advice": RECORDS
    | {"cost", "ops", "models", "models.architecture", "memory", "checkpoint", "planning", "planning.measured"}
    | {"offload", "planning.reading"},
    "machine.simulated": RECORDS,
    # all of it together
    "engine": RECORDS
    | {"ops", "ops.interface", "models", "memory", "machine", "schedule", "pipeline", "text", "stopping", "cost"},
    "options": RECORDS,
    "offload": RECORDS | {"cost", "ops", "ops.interface", "models", "memory", "machine", "planning"},
    "assembly": RECORDS
    | {
        "choosing",
        "forecasting",
        "offload",
        "cost",
        "ops",
        "models",
        "memory",
        "machine",
        "checkpoint",
        "planning",
        "text",
        "stopping",
        "engine",
        "options",
    },
    # what the user sees
    "arguments": RECORDS,
    "defaults": RECORDS | {"checkpoint"},
    "progress": set(),
    "forecasting": RECORDS | {"cost", "ops", "planning", "planning.measured", "engine"},
    "choosing": RECORDS | {"cost", "planning", "forecasting", "engine"},
    "results": RECORDS | {"text", "stopping"},
    "session": RECORDS | {"text", "progress", "results", "engine"},
    "metrics": RECORDS | {"engine"},
    "llm": RECORDS
    | {"checkpoint", "text", "arguments", "defaults", "progress", "session", "options", "assembly", "engine"}
    | {"forecasting"}
    | {"metrics", "pipeline"},
    "jobs": RECORDS | {"llm", "session", "defaults", "metrics", "text", "checkpoint", "ops"},
    "": RECORDS | {"llm", "text", "jobs"},
    "cli.parser": {"errors", "sizes", "arguments"},
    "cli.flags": RECORDS | {"cli.parser"},
    "bench": RECORDS
    | {"", "llm", "ops", "cli.parser", "cli.flags"}
    | {"cost", "engine", "planning", "planning.measured"},
    "doctor": RECORDS | {"ops", "memory", "bench"},
    "cli": RECORDS | {"", "bench", "jobs", "doctor", "planning", "planning.advice"},
    "__main__": {"cli"},
}


def unit_of(module: str) -> str:
    """The line of the table that a module belongs to: its own, or that of the nearest package that has one."""
    name = module
    while name not in ALLOWED and "." in name:
        name = name.rpartition(".")[0]
    return name if name in ALLOWED else ""


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_line_in_the_table() -> None:
    homeless = sorted(module for module in modules() if module and unit_of(module) == "")
    assert not homeless, f"say in ALLOWED what these may import: {homeless}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_run_one_way(module: str) -> None:
    allowed = ALLOWED[unit_of(module)]
    for imported in sorted(imported_modules(modules()[module])):
        own = package_of(imported) == package_of(module) and module != "" and unit_of(module) == package_of(module)
        assert own or imported in allowed or unit_of(imported) in allowed, (
            f"{module or 'moelens'} imports {imported or 'moelens'}, which the table does not allow"
        )


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: imported_modules(path) for module, path in modules().items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_the_table_has_no_cycle() -> None:
    order = {unit: {other for other in allowed if other != unit} for unit, allowed in ALLOWED.items()}
    known = set(order) | {"models.architecture", "schedule.batch", "machine.simulated"}
    assert set().union(*order.values()) <= known, "a unit that may be imported needs its own line"
    graphlib.TopologicalSorter(order).prepare()

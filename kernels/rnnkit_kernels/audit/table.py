"""The table of what the compiled kernels take."""

import triton

from rnnkit_kernels.audit.cases import Case
from rnnkit_kernels.audit.compilation import Resources
from rnnkit_kernels.audit.sources import source_hash
from rnnkit_kernels.recurrence.plan import Fallback, Plan


def row(case: Case, found: Resources) -> str:
    """A kernel's row of the table, but for the last column."""
    members = f"{case.members}{' layers' if case.wavefront else ''}"
    members += " zoneout" if case.zoneout else ""
    polls = " ".join(str(bits) for bits in sorted(set(found.poll_bits), reverse=True))
    cells = (
        case.target, case.cell, case.hidden, case.dtype, case.batch, members, found.kernel,
        found.registers, found.stack, found.shared_memory, found.tensor_core_instructions,
        polls, found.step_instructions, found.step_barriers,
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def report(
    rows: list[tuple[Case, Plan | Fallback, list[Resources]]],
    amd: dict[Case, str],
    crf: list[tuple[tuple[str, int, str], list[Resources]]],
) -> str:
    """The tables, as Markdown."""
    lines = [
        "# What the compiled kernels take",
        "",
        f"`python -m rnnkit_kernels.audit`, triton {triton.__version__}, source `{source_hash()}`.",
        "Registers a thread; stack in bytes a thread, above zero a spill; shared memory in bytes",
        "a program; tensor-core instructions in the PTX; widths of the loads that poll, in bits;",
        "of a step the instructions that one of four schedulers issues for all its warps, with one",
        "vain look at memory, and its barriers; gfx942: whether Triton's AMD backend compiles the",
        "plan and how much of that GPU's local memory it takes, tried for a few.",
        "",
        "| target | cell | H | dtype | B | members | kernel | registers | stack | shared memory "
        "| tensor cores | polls | instructions | barriers | gfx942 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, _, resources in sorted(rows, key=lambda row: str(row[0])):
        for i, found in enumerate(resources):
            lines.append(f"{row(case, found)} {amd.get(case, '') if i == 0 else ''} |")
    lines += [
        "",
        "The CRF's kernels, by the number of tags.",
        "",
        "| target | K | emissions | kernel | registers | stack | shared memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for of_case, resources in crf:
        for found in resources:
            numbers = (found.kernel, found.registers, found.stack, found.shared_memory)
            lines.append("| " + " | ".join(str(cell) for cell in (*of_case, *numbers)) + " |")
    return "\n".join(lines) + "\n"

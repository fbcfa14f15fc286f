"""Which kernel runs, with which tiles: pure Python, decided without a GPU.

A plan depends on the cell, the hidden size, the dtype and the device. Of T it never knows, and of B
only whether it is large: a new batch size or window length compiles and tunes nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from rnnkit_kernels.cells import Cell

Precision = Literal["ieee", "tf32", "tf32x3"]
Mode = Literal["resident", "data", "counter", "launch"]
Chunks = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a GPU.

    Attributes:
        name: the GPU's name, for messages.
        capability: 80 for an A100, 90 for an H100 or H200, 100 for a B200.
        shared_memory: bytes that one program may hold.
        multiprocessors: programs that run at once, when each fills one.
    """

    name: str
    capability: int
    shared_memory: int
    multiprocessors: int

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """The GPU behind `device`; for CPU tensors (the Triton interpreter) an H200."""
        if device.type != "cuda":
            return H200
        properties = torch.cuda.get_device_properties(device)
        return cls(
            properties.name,
            10 * properties.major + properties.minor,
            properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
            properties.multi_processor_count,
        )


A100 = Device("A100", 80, 166_912, 108)
H200 = Device("H200", 90, 232_448, 132)
B200 = Device("B200", 100, 232_448, 148)


@dataclass(frozen=True)
class Tiles:
    """The tiles of one kernel.

    Attributes:
        block_h: units of a tile; all of them in resident mode.
        block_b: sequences of a tile.
        chunks: for each stage's product, (start, size) pairs that cover its depth: units forward
            and in resident mode, gradient columns backward. In launch mode a single pair, the step
            of the loop over the depth.
        split: warps that share the depth of a product, backward.
        num_warps: of a program.
    """

    block_h: int
    block_b: int
    chunks: tuple[Chunks, ...]
    num_warps: int
    split: int = 1


@dataclass(frozen=True)
class Plan:
    """A way to meet, and tiles.

    Attributes:
        mode: "resident" (one launch, one program a tile of sequences, weights on chip), "data" or
            "counter" (one cooperative launch whose programs meet at every step, weights on chip) or
            "launch" (one launch a step).
        forward, backward: the tiles.
        precision: of float32 products.
        multiprocessors: programs that may wait for each other.
        reason: why this mode.
    """

    mode: Mode
    forward: Tiles
    backward: Tiles
    precision: Precision
    multiprocessors: int
    reason: str

    def constants(self, direction: Literal["forward", "backward"]) -> dict[str, object]:
        """The tiles as compile-time arguments of this mode's kernel."""
        tiles = self.forward if direction == "forward" else self.backward
        constants: dict[str, object] = {"CHUNKS": tiles.chunks[0], "BLOCK_B": tiles.block_b}
        if self.mode != "resident":
            constants |= {"MEETING": self.mode, "BLOCK_H": tiles.block_h}
            if direction == "backward":
                constants |= {"CHUNKS": tiles.chunks, "SPLIT": tiles.split}
        return constants

    def options(self, direction: Literal["forward", "backward"]) -> dict[str, int]:
        """Compiler options of this mode's kernel in one direction of the gradient."""
        tiles = self.forward if direction == "forward" else self.backward
        options = {"num_warps": tiles.num_warps, "num_stages": 1}
        if self.mode != "launch":
            # Left alone, ptxas aims at more programs an SM and spills a few registers for it; here
            # shared memory admits one program anyway.
            options["maxnreg"] = 255
        return options


# Offsets inside a weight matrix are 32-bit: G·H·H stays below 2³¹ for four gates and more.
MAX_HIDDEN = 16_384
# The rule's guesses, which no GPU has judged yet: above this B tiles of sequences are twice as
# large, and beyond so many turns a step one launch a step has work enough.
MANY_SEQUENCES = 128
MAX_TURNS = 8
MEETS_BY = {"data": "by data as flag", "counter": "by a counter"}


@dataclass(frozen=True)
class Fallback:
    """No kernel fits; `reason` says why."""

    reason: str


def unit_chunks(hidden: int, device: Device) -> list[Chunks]:
    """Ways to cover `hidden` units with (first unit, size) tiles in resident mode, best first.

    One power-of-two tile compiles to the leanest code. On Hopper 128 units and a second tile of 16
    still fit where 256 don't; elsewhere, and with finer tiles, the compiled kernels spill.
    """
    whole = max(16, 1 << (hidden - 1).bit_length())
    two_tiles = device.capability == 90 and 128 < hidden <= 144
    return [((0, whole),), *([((0, 128), (128, 16))] if two_tiles else [])]


def cover(length: int, smallest: int, largest: int) -> Chunks:
    """(start, size) tiles, powers of two in [smallest, largest], that cover `length`.

    The last is rounded up where that wastes no more than a sixteenth, for every tile costs
    registers: 1150 takes 512 + 512 + 128.
    """
    chunks: list[tuple[int, int]] = []
    start = 0
    while start < length:
        rest = length - start
        above = max(smallest, 1 << (rest - 1).bit_length())
        if above > largest or (above > smallest and 16 * (above - rest) > length):
            above = min(largest, 1 << (rest.bit_length() - 1))
        chunks.append((start, above))
        start += above
    return tuple(chunks)


def resident_bytes(cell: Cell, chunks: Chunks, itemsize: int, block_b: int) -> int:
    """Shared memory of the resident kernels: the weights, and room to stage operands and gates."""
    covered = sum(size for _, size in chunks)
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    weights = sum(padded) * covered * covered * itemsize
    return weights + max(max(padded) * covered * block_b * 4, 24576) + 1024


def together_bytes(cell: Cell, tiles: Tiles, itemsize: int, backward: bool) -> int:
    """Shared memory of the kernels that meet: a slice of the weights, and room to stage tiles."""
    held = [sum(size for _, size in chunks) for chunks in tiles.chunks]
    largest = max(size for chunks in tiles.chunks for _, size in chunks)
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    if backward:
        rows, outputs = [1] * len(held), tiles.split
    else:
        rows, outputs = padded, max(padded)
    weights = tiles.block_h * sum(a * b for a, b in zip(rows, held, strict=True)) * itemsize
    staged = max(largest * itemsize, outputs * tiles.block_h * 4) * tiles.block_b
    return weights + staged + 2048


def together_tiles(
    cell: Cell, hidden: int, dtype: torch.dtype, precision: Precision, device: Device, block_b: int
) -> tuple[Tiles, Tiles] | str:
    """Tiles of the kernels that meet, forward and backward, or why there are none."""
    if dtype == torch.float32 and precision == "ieee":
        # No tensor core multiplies them: the weights would have to lie in registers.
        return "IEEE float32 products read their weights from registers, which can't hold them"
    itemsize = dtype.itemsize
    largest = 64 if precision == "tf32x3" else 512 if itemsize == 2 else 256
    warps = 8 if hidden > 256 else 4
    problem = ""
    for block_h, step in ((16, largest), (16, largest // 2), (8, largest)):
        programs = -(-hidden // block_h)
        if programs > device.multiprocessors:
            return problem or (
                f"{programs} programs of {block_h} units exceed {device.multiprocessors} "
                "multiprocessors"
            )
        units = cover(hidden, 16, step)
        forward = Tiles(block_h, block_b, (units,) * len(cell.gates), warps)
        columns = tuple(
            cover(gates * hidden, 16 * warps, min(512, 2 * step)) for gates in cell.gates
        )
        backward = Tiles(block_h, block_b, columns, warps, split=warps)
        needed = max(
            together_bytes(cell, forward, itemsize, False),
            together_bytes(cell, backward, itemsize, True),
        )
        if needed <= device.shared_memory:
            return forward, backward
        problem = (
            f"{needed:,} bytes of weights and staging for {block_h} units exceed "
            f"{device.shared_memory:,} bytes of shared memory"
        )
    return problem


def plan(
    cell: Cell,
    hidden: int,
    dtype: torch.dtype,
    device: Device,
    precision: Precision = "ieee",
    mode: Mode | None = None,
    batch: int = 1,
    members: int = 1,
    together: bool = True,
) -> Plan | Fallback:
    """Choose the kernel for one layer.

    Args:
        cell: the cell.
        hidden: H.
        dtype: of the inputs and weights.
        device: the GPU.
        precision: of float32 products; 16-bit products are exact before they are summed.
        mode: one mode, or None for the rule.
        batch: B, the number of sequences.
        members: directions in one call.
        together: whether the rule may choose programs that wait for each other.

    Returns:
        A plan, or the reason why there is none.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return Fallback(f"the kernels compute in float32, float16 and bfloat16, not {dtype}")
    if device.capability < 80:
        return Fallback(
            f"the kernels need compute capability 8.0, {device.name} has "
            f"{device.capability // 10}.{device.capability % 10}"
        )
    if hidden > MAX_HIDDEN:
        return Fallback(f"the kernels address {MAX_HIDDEN:,} units, not {hidden:,}")

    def planned(kind: Mode, forward: Tiles, backward: Tiles, reason: str) -> Plan:
        return Plan(kind, forward, backward, precision, device.multiprocessors, reason)

    needed = {
        chunks: resident_bytes(cell, chunks, dtype.itemsize, 16)
        for chunks in unit_chunks(hidden, device)
    }
    fitting = [chunks for chunks, size in needed.items() if size <= device.shared_memory]
    on_chip = f"{device.shared_memory:,} bytes of shared memory"
    too_large = f"{min(needed.values()):,} bytes of weights and staging exceed {on_chip}"
    if fitting and dtype == torch.float32 and precision != "tf32" and hidden > 32:
        # No tensor core multiplies IEEE float32: operands fill registers, larger tiles spill.
        fitting = []
        too_large = f"{precision} float32 products of more than 32 units overflow the registers"
    if mode == "resident" and not fitting:
        return Fallback(f"hidden size {hidden} does not stay on chip: {too_large}")
    if fitting and mode in (None, "resident"):
        tiles = (hidden, 16, (fitting[0],))
        return planned(
            "resident",
            Tiles(*tiles, num_warps=8 if hidden > 64 else 4),
            Tiles(*tiles, num_warps=8),
            f"{needed[fitting[0]]:,} bytes of weights and staging fit {on_chip}",
        )
    block_b = 16 if batch <= MANY_SEQUENCES else 32
    found = together_tiles(cell, hidden, dtype, precision, device, block_b)
    if isinstance(found, tuple):
        programs = -(-hidden // found[0].block_h)
        groups = device.multiprocessors // programs
        turns = -(-(-(-batch // block_b) * members) // groups)
        if mode in ("data", "counter"):
            return planned(mode, *found, f"programs that meet {MEETS_BY[mode]} were asked for")
        if mode is None and together and turns <= MAX_TURNS:
            reason = f"{programs} programs hold the weights on chip, of {groups * programs} at once"
            return planned("data", *found, reason)
        why = f"{batch:,} sequences take {turns} turns a step, more than {MAX_TURNS}"
    else:
        why = found
    if mode in ("data", "counter"):
        return Fallback(f"hidden size {hidden} can't be shared among programs: {why}")
    if not together:
        why = "programs that wait for each other were excluded"
    tiles = Tiles(16, 32, (((0, 64),),) * len(cell.gates), 4)
    asked = mode == "launch"
    return planned("launch", tiles, tiles, "one launch a step was asked for" if asked else why)

"""Which kernel runs, with which tiles: pure Python, decided without a GPU.

A plan depends on the cell, the hidden size, the dtype and the device. Of T it never knows, and of B
only whether it is large: a new batch size or window length compiles and tunes nothing.
"""

import itertools
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
        # Left to itself, ptxas aims at more programs an SM and spills a few registers for it.
        return {"num_warps": tiles.num_warps, "num_stages": 1, "maxnreg": 255}


# Offsets inside a weight matrix are 32-bit: G·H·H stays below 2³¹ for four gates and more.
MAX_HIDDEN = 16_384
# The rule's guesses, which no GPU has judged yet: above this B forward tiles of sequences are twice
# as large, and beyond so many turns a step one launch a step has work enough.
MANY_SEQUENCES = 128
MAX_TURNS = 8
MEETS_BY = {"data": "by data as flag", "counter": "by a counter"}

# Programs that meet wait for every tile of the exchange on its own, so few large ones are quicker;
# but the values and pointers of a tile lie in registers. Forward, 16 KiB compile without a spill
# up to rows of 2 KiB. Beyond there are more tiles, and 16 KiB spill 24 bytes at 1,150 units.
FORWARD_TILE = 16_384
LONG_ROW = 2_048
# Backward the columns of 16 sequences; of 32 sequences half as many spill in counter mode.
BACKWARD_COLUMNS = 512
# tf32x3 splits operands in two and multiplies three times; audited at a quarter of the tiles.
TF32X3_SHRINKS = 4
# A launch reads this much of a row at once: twice as much spills in float32 at 1,150 units.
STREAMED_BYTES = 128


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


def cover(length: int, smallest: int, largest: int, waste: int) -> Chunks:
    """(start, size) tiles, powers of two in [smallest, largest], that cover `length`.

    The last is rounded up where that wastes no more than `length / waste`, for every tile costs a
    wait: with a third to waste 650 takes 512 + 256, with a sixteenth 512 + 128 + 16.
    """
    chunks: list[tuple[int, int]] = []
    start = 0
    while start < length:
        rest = length - start
        above = max(smallest, 1 << (rest - 1).bit_length())
        if above > largest or (above > smallest and waste * (above - rest) > length):
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
    """Shared memory of the kernels that meet: a slice of the weights, and room to stage tiles.

    Args:
        cell: the cell.
        tiles: of the kernel.
        itemsize: bytes of an operand: those of its dtype, and twice as many with tf32x3.
        backward: which kernel.
    """
    held = [sum(size for _, size in chunks) for chunks in tiles.chunks]
    polled = max(size for chunks in tiles.chunks for _, size in chunks) * tiles.block_b * itemsize
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    rows = [1] * len(held) if backward else padded
    weights = tiles.block_h * sum(a * b for a, b in zip(rows, held, strict=True)) * itemsize
    # Sums change their layout through shared memory: forward while a tile of the exchange may
    # lie there, backward after the last.
    sums = (tiles.split if backward else max(padded)) * tiles.block_h * tiles.block_b * 4
    return weights + (max(polled, sums) if backward else polled + sums) + 1024


def together_tiles(
    cell: Cell,
    hidden: int,
    dtype: torch.dtype,
    precision: Precision,
    device: Device,
    batch: int,
    backward: bool,
) -> Tiles | str:
    """Tiles of one of the kernels that meet, or why there are none."""
    if dtype == torch.float32 and precision == "ieee":
        # No tensor core multiplies them: the weights would have to lie in registers.
        return "IEEE float32 products read their weights from registers, which can't hold them"
    itemsize = dtype.itemsize
    in_parts = 2 if precision == "tf32x3" else 1
    shrink = TF32X3_SHRINKS if precision == "tf32x3" else 1
    tile = FORWARD_TILE // shrink
    if hidden * itemsize > LONG_ROW:
        tile //= 2 * len(cell.gates)
    # Four warps have registers enough for short rows, and a shorter way to each other.
    warps = 8 if hidden > 256 else 4
    shapes = [(16, 16)]
    if precision != "tf32x3":
        # Eight units leave wgmma's rows half empty: mma.sync then reads operands from registers,
        # which have no room for the parts of tf32x3 nor for wide tiles.
        shapes.append((8, 16))
        if batch > MANY_SEQUENCES and len(cell.gates) == 1 and not backward:
            shapes.insert(0, (16, 32))
    problem = ""
    for (block_h, block_b), waste in itertools.product(shapes, (3, 16)):
        programs = -(-hidden // block_h)
        if programs > device.multiprocessors:
            return problem or (
                f"{programs} programs of {block_h} units exceed {device.multiprocessors} "
                "multiprocessors"
            )
        if backward:
            largest = BACKWARD_COLUMNS // shrink
            chunks = tuple(cover(g * hidden, 16 * warps, largest, waste) for g in cell.gates)
            tiles = Tiles(block_h, block_b, chunks, warps, split=warps)
        else:
            units = cover(hidden, 16, tile // (itemsize * block_b), waste)
            tiles = Tiles(block_h, block_b, (units,) * len(cell.gates), warps)
        needed = together_bytes(cell, tiles, itemsize * in_parts, backward)
        if needed <= device.shared_memory:
            return tiles
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
        covered = (hidden, 16, (fitting[0],))
        return planned(
            "resident",
            Tiles(*covered, num_warps=8 if hidden > 64 else 4),
            Tiles(*covered, num_warps=8),
            f"{needed[fitting[0]]:,} bytes of weights and staging fit {on_chip}",
        )
    tiles = (cell, hidden, dtype, precision, device, batch)
    ahead, back = together_tiles(*tiles, False), together_tiles(*tiles, True)
    if isinstance(ahead, Tiles) and isinstance(back, Tiles):
        programs = -(-hidden // min(ahead.block_h, back.block_h))
        groups = device.multiprocessors // programs
        turns = -(-(-(-batch // back.block_b) * members) // groups)
        if mode == "counter" and back.block_h < 16:
            return Fallback(
                f"hidden size {hidden} takes programs of {back.block_h} units, which spill "
                "registers where they meet by a counter: data as flag has room"
            )
        if mode in ("data", "counter"):
            reason = f"programs that meet {MEETS_BY[mode]} were asked for"
            return planned(mode, ahead, back, reason)
        if mode is None and together and turns <= MAX_TURNS:
            reason = f"{programs} programs hold the weights on chip, of {groups * programs} at once"
            return planned("data", ahead, back, reason)
        why = f"{batch:,} sequences take {turns} turns a step, more than {MAX_TURNS}"
    else:
        why = ahead if isinstance(ahead, str) else str(back)
    if mode in ("data", "counter"):
        return Fallback(f"hidden size {hidden} can't be shared among programs: {why}")
    if not together:
        why = "programs that wait for each other were excluded"
    streamed = Tiles(16, 32, (((0, STREAMED_BYTES // dtype.itemsize),),) * len(cell.gates), 4)
    asked = mode == "launch"
    return planned(
        "launch", streamed, streamed, "one launch a step was asked for" if asked else why
    )

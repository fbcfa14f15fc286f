"""Which kernel runs, with which tiles: pure Python, decided without a GPU.

A plan depends on the cell, the hidden size, the dtype and the device. Of T it never knows, and of B
only whether it is large: a new batch size or window length compiles and tunes nothing.
"""

from dataclasses import dataclass, replace
from functools import cache
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
        polled: chunks that programs that meet fetch at a time.
    """

    block_h: int
    block_b: int
    chunks: tuple[Chunks, ...]
    num_warps: int
    split: int = 1
    polled: int = 1


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

# What a program has of the exchange in registers at once: bytes a thread, forward and backward. All
# of a row at once is quickest, for every look at memory costs as much as the product.
POLLED_FORWARD = 288
POLLED_BACKWARD = 512
# Units and columns of one tile of the exchange: words of different tiles are compared in pairs.
LARGEST_UNITS = 256
LARGEST_COLUMNS = 512
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


def equal_chunks(length: int, largest: int, smallest: int) -> Chunks:
    """(start, size) tiles of one size that cover `length`: those polled together must be alike.

    The size is a power of two, the largest that wastes an eighth or less, else `smallest`.
    """
    size = largest
    while size > smallest and 8 * (-length % size) > length:
        size //= 2
    return tuple((start, size) for start in range(0, length, size))


def resident_bytes(cell: Cell, chunks: Chunks, itemsize: int, block_b: int) -> int:
    """Shared memory of the resident kernels: the weights, and room to stage operands and gates."""
    covered = sum(size for _, size in chunks)
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    weights = sum(padded) * covered * covered * itemsize
    return weights + max(max(padded) * covered * block_b * 4, 24576) + 1024


def together_bytes(
    cell: Cell, tiles: Tiles, itemsize: int, backward: bool, weights: int = 1
) -> int:
    """Shared memory of the kernels that meet: a slice of the weights, and room to stage tiles.

    Args:
        cell: the cell.
        tiles: of the kernel.
        itemsize: bytes of an operand: those of its dtype, and twice as many with tf32x3.
        backward: which kernel.
        weights: as in `together_tiles`.
    """
    held = [weights * sum(size for _, size in chunks) for chunks in tiles.chunks]
    units = max(chunks[0][1] * min(tiles.polled, len(chunks)) for chunks in tiles.chunks)
    polled = units * tiles.block_b * itemsize
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    rows = [1] * len(held) if backward else padded
    kept = tiles.block_h * sum(a * b for a, b in zip(rows, held, strict=True)) * itemsize
    # Sums change their layout through shared memory: forward while a tile of the exchange may
    # lie there, backward after the last.
    sums = (tiles.split if backward else max(padded)) * tiles.block_h * tiles.block_b * 4
    return kept + (max(polled, sums) if backward else polled + sums) + 1024


@cache
def together_tiles(
    cell: Cell,
    hidden: int,
    dtype: torch.dtype,
    precision: Precision,
    device: Device,
    many: bool,
    backward: bool,
    weights: int = 1,
) -> Tiles | str:
    """Tiles of one of the kernels that meet, or why there are none.

    Args:
        cell: the cell.
        hidden: H.
        dtype: of the inputs and weights.
        precision: of float32 products.
        device: the GPU.
        many: whether there are so many sequences that wide tiles of them pay.
        backward: which kernel.
        weights: how many of the size of W_hh a program holds a slice of; two in a wavefront.
    """
    if dtype == torch.float32 and precision == "ieee":
        # No tensor core multiplies them: the weights would have to lie in registers.
        return "IEEE float32 products read their weights from registers, which can't hold them"
    itemsize = dtype.itemsize
    in_parts = 2 if precision == "tf32x3" else 1
    shrink = TF32X3_SHRINKS if precision == "tf32x3" else 1
    # Forward a second group of four warps would only read the weights once more: wgmma takes 64
    # rows at a time, which is all that a program has. Backward every warp has its own slice.
    warps = 8 if backward and hidden > 256 else 4
    polled_bytes = (POLLED_BACKWARD if backward else POLLED_FORWARD) * 32 * warps
    polled_bytes //= shrink * weights
    shapes = [(16, 16)]
    if precision != "tf32x3":
        # Eight units leave wgmma's rows half empty: mma.sync then reads operands from registers,
        # which have no room for the parts of tf32x3 nor for wide tiles.
        shapes.append((8, 16))
        if many and len(cell.gates) == 1 and not backward:
            shapes.insert(0, (16, 32))
    problem = ""
    for block_h, block_b in shapes:
        programs = -(-hidden // block_h)
        if programs > device.multiprocessors:
            return problem or (
                f"{programs} programs of {block_h} units exceed {device.multiprocessors} "
                "multiprocessors"
            )
        # 16 bytes of the exchange a thread: narrower loads take as long, and of less than one
        # element each Triton would poll replicas.
        smallest = max(16 * (warps if backward else 1), 16 // itemsize * 32 * warps // block_b)
        largest = max(smallest, (LARGEST_COLUMNS if backward else LARGEST_UNITS) // shrink)
        found: list[tuple[int, Tiles]] = []
        while largest >= smallest:
            if backward:
                chunks = tuple(equal_chunks(g * hidden, largest, smallest) for g in cell.gates)
            else:
                chunks = (equal_chunks(hidden, largest, smallest),) * len(cell.gates)
            count = max(len(product) for product in chunks)
            largest = max(product[0][1] for product in chunks)
            bytes_of_one = largest * block_b * itemsize * in_parts
            tiles = Tiles(block_h, block_b, chunks, warps, warps if backward else 1)
            needed = together_bytes(cell, tiles, itemsize * in_parts, backward, weights)
            if needed <= device.shared_memory:
                room = 1 + (device.shared_memory - needed) // bytes_of_one
                in_registers = max(1, polled_bytes * in_parts // bytes_of_one)
                looks = -(-count // min(room, in_registers))
                found.append((looks, replace(tiles, polled=-(-count // looks))))
            largest //= 2
        if found:
            return min(found, key=lambda pair: pair[0])[1]
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
    tiles = (cell, hidden, dtype, precision, device, batch > MANY_SEQUENCES)
    ahead, back = together_tiles(*tiles, False), together_tiles(*tiles, True)
    if isinstance(ahead, Tiles) and isinstance(back, Tiles):
        smaller = min(ahead.block_h, back.block_h)
        programs = -(-hidden // smaller)
        groups = device.multiprocessors // programs
        turns = -(-(-(-batch // back.block_b) * members) // groups)
        if mode == "counter" and smaller < 16:
            return Fallback(
                f"hidden size {hidden} takes programs of {smaller} units, which spill "
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

"""Which kernel runs, with which tiles: pure Python, decided without a GPU.

A plan depends on the cell, the hidden size, the dtype and the device, never on T or B: a new batch
size or window length compiles and tunes nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from rnnkit_kernels.cells import Cell

Precision = Literal["ieee", "tf32", "tf32x3"]


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a GPU.

    Attributes:
        name: the GPU's name, for messages.
        capability: 80 for an A100, 90 for an H100 or H200, 100 for a B200.
        shared_memory: bytes that one program may hold.
    """

    name: str
    capability: int
    shared_memory: int

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
        )


H200 = Device("interpreted H200", 90, 232_448)


@dataclass(frozen=True)
class Plan:
    """A kernel and its tiles.

    Attributes:
        mode: "resident" (one launch, the weights stay on chip) or "launch" (one launch a step).
        chunks: resident: (first unit, size) tiles that cover the hidden units.
        block_h, block_b, block_k: units, sequences and product depth of a tile.
        num_warps: forward and backward.
        precision: of float32 products.
        reason: why this mode.
    """

    mode: Literal["resident", "launch"]
    chunks: tuple[tuple[int, int], ...]
    block_h: int
    block_b: int
    block_k: int
    num_warps: tuple[int, int]
    precision: Precision
    reason: str

    def tiles(self) -> dict[str, object]:
        """The tile sizes, as the compile-time arguments of this mode's kernels."""
        if self.mode == "resident":
            return {"CHUNKS": self.chunks, "BLOCK_B": self.block_b}
        return {"BLOCK_H": self.block_h, "BLOCK_B": self.block_b, "BLOCK_K": self.block_k}

    def options(self, direction: Literal["forward", "backward"]) -> dict[str, int]:
        """Compiler options of this mode's kernel in one direction of the gradient."""
        options = {"num_warps": self.num_warps[direction == "backward"], "num_stages": 1}
        if self.mode == "resident":
            # Left alone, ptxas aims at more programs an SM and spills a few registers for it; here
            # shared memory admits one program anyway.
            options["maxnreg"] = 255
        return options


@dataclass(frozen=True)
class Fallback:
    """No kernel fits; `reason` says why."""

    reason: str


def unit_chunks(hidden: int, device: Device) -> list[tuple[tuple[int, int], ...]]:
    """Ways to cover `hidden` units with (first unit, size) tiles, best first.

    One power-of-two tile compiles to the leanest code. On Hopper 128 units and a second tile of 16
    still fit where 256 don't; elsewhere, and with finer tiles, the compiled kernels spill.
    """
    whole = max(16, 1 << (hidden - 1).bit_length())
    two_tiles = device.capability == 90 and 128 < hidden <= 144
    return [((0, whole),), *([((0, 128), (128, 16))] if two_tiles else [])]


def resident_bytes(
    cell: Cell, chunks: tuple[tuple[int, int], ...], itemsize: int, block_b: int
) -> int:
    """Shared memory of the resident kernels: the weights, and room to stage operands and gates."""
    covered = sum(size for _, size in chunks)
    padded = [1 << (gates - 1).bit_length() for gates in cell.gates]
    weights = sum(padded) * covered * covered * itemsize
    return weights + max(max(padded) * covered * block_b * 4, 24576) + 1024


def plan(
    cell: Cell,
    hidden: int,
    dtype: torch.dtype,
    device: Device,
    precision: Precision = "ieee",
    mode: Literal["resident", "launch"] | None = None,
) -> Plan | Fallback:
    """Choose the kernel for one layer.

    Args:
        cell: the cell.
        hidden: H.
        dtype: of the inputs and weights.
        device: the GPU.
        precision: of float32 products; 16-bit products are exact before they are summed.
        mode: one mode, or None for the rule.

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
    block_b = 16
    needed = {
        chunks: resident_bytes(cell, chunks, dtype.itemsize, block_b)
        for chunks in unit_chunks(hidden, device)
    }
    fitting = [chunks for chunks, size in needed.items() if size <= device.shared_memory]
    on_chip = f"{device.shared_memory:,} bytes of shared memory"
    too_large = f"{min(needed.values()):,} bytes of weights and staging exceed {on_chip}"
    if fitting and dtype == torch.float32 and precision == "ieee" and hidden > 32:
        # No tensor core multiplies IEEE float32: operands fill registers, larger tiles spill.
        fitting, too_large = (
            [],
            "IEEE float32 products of more than 32 units overflow the registers",
        )
    if mode == "resident" and not fitting:
        return Fallback(f"hidden size {hidden} does not stay on chip: {too_large}")
    if fitting and mode != "launch":
        return Plan(
            mode="resident",
            chunks=fitting[0],
            block_h=0,
            block_b=block_b,
            block_k=0,
            num_warps=(8 if hidden > 64 else 4, 8),
            precision=precision,
            reason=f"{needed[fitting[0]]:,} bytes of weights and staging fit {on_chip}",
        )
    return Plan(
        mode="launch",
        chunks=(),
        block_h=16,
        block_b=32,
        block_k=64,
        num_warps=(4, 4),
        precision=precision,
        reason="one launch a step was asked for" if fitting else too_large,
    )

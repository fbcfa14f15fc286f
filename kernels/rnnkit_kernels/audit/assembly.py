"""What no CPU can run is read off the compiled text: the rules that every kernel has to keep.

`broken_rules` takes Triton's GPU dialect (TTGIR) and PTX as text, `longest_loop` the machine code
that was made of them. They need no compiler, so that their tests can hand them kernels broken on
purpose.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Memory whose rows grow with T·B: a 32-bit row base would overflow past 2³¹ elements.
_GROWING = {
    *("x_gates", "zoneout", "operand", "storage.y", "storage.saved", "storage.states"),
    *("stack.dropped", "initial.h", "initial.c"),
    *("gradients.y", "gradients.h_n", "gradients.carry", "gradients.columns"),
}
_WEIGHTS = {"weights.weight_hh", "stack.weight_ih"}
# Steps from a pointer to the one it was made of: the operands that may hold it.
_POINTER_STEPS = {
    **dict.fromkeys(("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims"), (0,)),
    **dict.fromkeys(("tt.bitcast", "tt.reshape", "tt.trans", "ttg.convert_layout"), (0,)),
    "arith.select": (1, 2),
}
_OPERATION = re.compile(r'^(?:%[\w:, %]+ = )?"?([a-z_]+\.[\w.]+)"?')
_RESULTS = re.compile(r"^(%\w+(?::\d+)?(?:, %\w+)*) = ")
_TENSOR = re.compile(r"tensor<((?:\d+x)+)[^,]*, (#\w+)>")
_LAYOUT = re.compile(
    r"^(#\w+) = #ttg\.blocked<\{sizePerThread = \[([\d, ]+)\], threadsPerWarp = \[([\d, ]+)\], "
    r"warpsPerCTA = \[([\d, ]+)\]",
    re.MULTILINE,
)
_RELEASE = re.compile(r"\b(?:atom|red)\b[\w.]*\.release[\w.]*")
_ACQUIRE = re.compile(r"\b(?:ld|atom)\b[\w.]*\.acquire[\w.]*")
_TENSOR_CORES = re.compile(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)")
_ARGUMENTS = re.compile(r"^\s*tt\.func public @\w+\((.*)$", re.MULTILINE)
_ARGUMENT = re.compile(r"(%\w+): ")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_BRANCH = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")
_POLL = re.compile(r"\bld\.volatile\.global(?:\.v(\d))?\.\w(\d+)")


@dataclass(frozen=True)
class Operation:
    """One line of TTGIR.

    Attributes:
        name: such as "tt.load".
        text: the line.
        operands: what it reads, an operation or the name of a kernel argument each.
        around: the operations whose regions it lies in, outermost first; the part of a
            `scf.while` after its condition appears as "do".
    """

    name: str
    text: str
    operands: "tuple[Operation | str, ...]" = field(repr=False)
    around: tuple[str, ...]

    @property
    def in_loop(self) -> bool:
        """Whether it runs at every step."""
        return "scf.for" in self.around

    @property
    def tensor(self) -> tuple[tuple[int, ...], str]:
        """Shape and layout of the last tensor type of the line; () where there is none."""
        found = _TENSOR.findall(self.text)
        shape, layout = found[-1] if found else ("", "")
        return tuple(int(size) for size in shape.split("x")[:-1]), layout

    def pointers(self) -> set[str]:
        """The kernel arguments that the first operand may point into; "?" where that is lost."""
        return _roots(self.operands[0]) if self.operands else {"?"}


def _roots(value: "Operation | str") -> set[str]:
    if isinstance(value, str):
        return {value}
    steps = _POINTER_STEPS.get(value.name)
    if steps is None:
        return {"?"}
    return set().union(*(_roots(value.operands[i]) for i in steps))


def operations(ttgir: str, arguments: Sequence[str] = ()) -> Iterator[Operation]:
    """The operations of the kernel, in order.

    Args:
        ttgir: the kernel.
        arguments: names of its arguments, for those of a bundle share one in the text; () for the
            names in the text.
    """
    around: list[str] = []
    # Names come again in sibling regions: the latest definition is the one that counts.
    known: dict[str, Operation | str] = {}
    if arguments:
        found = _ARGUMENTS.search(ttgir)
        assert found is not None
        known |= zip(_ARGUMENT.findall(found[1]), arguments, strict=True)
    for line in ttgir.splitlines():
        text = line.strip()
        if text.startswith("}"):
            closed = around.pop()
            if text.endswith("{"):
                around.append("do" if closed == "scf.while" else closed)
            continue
        match = _OPERATION.match(text)
        if match is None:
            if text.endswith("{") and not text.startswith("#"):
                around.append("")
            continue
        results = _RESULTS.match(text)
        body = text[results.end() if results else 0 :]
        names = re.findall(r"%\w+", body.split(" loc(")[0])
        operation = Operation(
            match[1],
            text,
            tuple(known.get(name, name[1:]) for name in names),
            tuple(around),
        )
        yield operation
        if results:
            known |= dict.fromkeys(re.findall(r"%\w+", results[1]), operation)
        if text.endswith("{"):
            around.append(match[1])


def broken_rules(
    mode: str,
    polled: int,
    weights: int,
    tensor_cores: bool,
    ttgir: str,
    ptx: str,
    arguments: Sequence[str],
) -> list[str]:
    """What a compiled kernel does that its mode forbids; [] for a good one.

    Args:
        mode: of `Plan`.
        polled: tiles of the exchange that a program reads at every step, each on its own.
        weights: tiles of weights that stay in shared memory.
        tensor_cores: whether the dtype's products run on them.
        ttgir, ptx: the kernel.
        arguments: names of its arguments.
    """
    found = list(operations(ttgir, arguments))
    rules = _row_bases(found)
    if mode == "data":
        rules += _polls(found, polled, ttgir)
    elif any("isVolatile" in operation.text for operation in found) or "ld.volatile" in ptx:
        rules.append("volatile loads outside data mode")
    if mode == "counter":
        rules += _meetings(found, ptx)
    elif "tt.atomic_rmw" in ttgir or re.search(r"\b(?:atom|red)\.", ptx):
        rules.append("atomics outside counter mode")
    if mode != "launch":
        # The smallest resident tiles may stay in registers.
        rules += _held_weights(found, 0 if mode == "resident" else weights)
    if tensor_cores:
        if not _TENSOR_CORES.search(ptx):
            rules.append("no tensor-core instruction")
        # Products outside tensor cores keep the layout of the loads around them.
        if any(o.name == "tt.dot" and "parent = #blocked" in o.text for o in found):
            rules.append("a product outside the tensor cores")
    return rules


def _row_bases(found: list[Operation]) -> list[str]:
    """Row bases are 64-bit: N·G·H may pass 2³¹."""
    return [
        f"a 32-bit row base into {operation.operands[0]}"
        for operation in found
        if operation.name == "tt.addptr"
        and operation.operands[0] in _GROWING
        and not re.search(r": !tt\.ptr<\w+>, i64\b", operation.text)
    ]


def _polls(found: list[Operation], polled: int, ttgir: str) -> list[str]:
    """Each polled tile is read at two places, in one layout that holds every element once."""
    rules = []
    loads = [o for o in found if o.name == "tt.load" and "isVolatile" in o.text]
    spinning = [o for o in loads if "do" in o.around]
    before = [o for o in loads if "do" not in o.around]
    if len(before) != polled or len(spinning) != polled:
        rules.append(
            f"{len(before)} volatile loads before and {len(spinning)} in spin loops, for {polled} "
            "polled tiles"
        )
    if Counter(o.tensor for o in before) != Counter(o.tensor for o in spinning):
        rules.append("a tile is polled in two layouts")
    if any("scf.for" not in o.around for o in loads):
        rules.append("a volatile load outside the time loop")
    layouts = {}
    for name, *sizes in _LAYOUT.findall(ttgir):
        size, threads, warps = ([int(n) for n in part.split(",")] for part in sizes)
        layouts[name] = [a * b * c for a, b, c in zip(size, threads, warps, strict=True)]
    for shape, layout in {o.tensor for o in loads}:
        covered = layouts.get(layout)
        if covered is None:
            rules.append(f"a polled tile {shape} in a layout that is not blocked")
        elif any(a > b for a, b in zip(covered, shape, strict=True)):
            rules.append(f"a polled tile {shape} is replicated: {layout} covers {tuple(covered)}")
    return rules


def _meetings(found: list[Operation], ptx: str) -> list[str]:
    """A barrier, one release; an acquire, and a barrier after the loop that polls it."""
    rules = []
    releases = [o for o in found if o.name == "tt.atomic_rmw" and "release" in o.text]
    acquires = [o for o in found if o.name == "tt.atomic_rmw" and "acquire" in o.text]
    atomics = [o for o in found if o.name.startswith("tt.atomic")]
    if not releases or not acquires or len(atomics) != len(releases) + len(acquires):
        rules.append("atomics that neither announce nor wait")
    if any("gpu" not in o.text for o in atomics):
        rules.append("an atomic that does not reach the whole GPU")
    memory = ("tt.store", "tt.load", "tt.atomic_rmw")
    # What touches memory, barriers, and the ends of the loops that poll, as one word each.
    words = []
    for o in found:
        if "barrier" in o.name:
            words.append("barrier")
        elif o in acquires:
            words.append("acquire")
        elif o in releases:
            words.append("release")
        elif o.name in memory:
            words.append("memory")
    line = " ".join(words)
    if len(re.findall("barrier release", line)) != len(releases):
        rules.append("no barrier before a release")
    if len(re.findall("acquire barrier", line)) != len(acquires):
        rules.append("no barrier after a poll loop")
    # In PTX the same once more, for the barrier must survive the lowering. `atomic_add(counter, 0)`
    # becomes a plain load with acquire semantics, which is what a poll needs.
    if len(re.findall(r"\.gpu", " ".join(_RELEASE.findall(ptx)))) != len(releases):
        rules.append("a release that is no atomic of GPU scope in PTX")
    if len(re.findall(r"\.gpu", " ".join(_ACQUIRE.findall(ptx)))) != len(acquires):
        rules.append("an acquire that is no load of GPU scope in PTX")
    for release in _RELEASE.finditer(ptx):
        before = re.findall(r"\bst\.global|\bbar(?:rier)?\.(?:cta\.)?sync", ptx[: release.start()])
        if not before or before[-1].startswith("st"):
            rules.append("no barrier between the stores and the release in PTX")
    return rules


def _held_weights(found: list[Operation], weights: int) -> list[str]:
    """Weights are read once and stay in shared memory."""
    rules = []
    for operation in found:
        if operation.name == "tt.load" and operation.pointers() & _WEIGHTS and operation.in_loop:
            rules.append("weights are loaded in the time loop")
        if operation.name == "ttg.local_alloc" and operation.in_loop and operation.operands:
            source = operation.operands[0]
            if isinstance(source, Operation) and not source.in_loop:
                rules.append("a tile from outside the time loop is staged at every step")
    staged = sum(o.name == "ttg.local_alloc" and not o.in_loop for o in found)
    if staged < weights:
        rules.append(f"{staged} tiles of weights in shared memory instead of {weights}")
    return rules


def tensor_core_instructions(ptx: str) -> int:
    """How many stand in the text: wgmma, tcgen05 and mma."""
    return len(_TENSOR_CORES.findall(ptx))


def poll_bits(ptx: str) -> tuple[int, ...]:
    """Widths of the polling loads, bits, falling; () where none polls."""
    return tuple(sorted({int(n or 1) * int(bits) for n, bits in _POLL.findall(ptx)}, reverse=True))


def longest_loop(sass: str) -> list[str]:
    """The instructions of the loop that has most of them; in kernels that loop over steps, a step.

    Args:
        sass: what `cuobjdump -sass` prints.
    """
    found = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(sass)]
    loops = [(0, 0)]
    for address, text in found:
        branch = _BRANCH.search(text)
        if branch and int(branch[1], 16) < address:  # a branch to itself ends every kernel
            loops.append((int(branch[1], 16), address))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return [text for address, text in found if first <= address <= last] if last else []

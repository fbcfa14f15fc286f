"""The rules for what no CPU can run, each shown to notice a kernel that breaks it.

Three small kernels are compiled, in a process of its own, since here Triton interprets; their text
is then broken one line at a time.
"""

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from rnnkit_kernels.audit.assembly import broken_rules, longest_loop, operations, poll_bits

pytestmark = [pytest.mark.process, pytest.mark.compiler]

SCRIPT = """
import json
import triton
from triton.backends.compiler import GPUTarget
from rnnkit_kernels.audit.cases import DTYPES, Case
from rnnkit_kernels.audit.compilation import argument_names, kernels_of, source_of
from rnnkit_kernels.cells import CELLS

texts = {}
for mode in ("data", "counter", "launch"):
    case = Case("lstm", 96, mode=mode)
    name, function, constants, options, (polled, held) = kernels_of(
        CELLS["lstm"], case.plan(), 96, DTYPES["bf16"][0], ragged=True, members=1
    )[0]
    source = source_of(function, constants, DTYPES["bf16"][0])
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    texts[mode] = [mode, polled, held, True, compiled.asm["ttgir"], compiled.asm["ptx"],
                   argument_names(source)]
print(json.dumps(texts))
"""


class Kernel(NamedTuple):
    """The arguments of `broken_rules`."""

    mode: str
    polled: int
    weights: int
    tensor_cores: bool
    ttgir: str
    ptx: str
    arguments: list[str]

    def named(self, text: str) -> str:
        """`text` with the kernel's own names for the arguments that stand in < >."""
        line = re.search(r"tt\.func public @\w+\((.*)$", self.ttgir, re.MULTILINE)
        assert line is not None
        names = zip(self.arguments, re.findall(r"(%\w+): ", line[1]), strict=True)
        for argument, name in names:
            text = text.replace(f"<{argument}>", name)
        return text


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {mode: Kernel(*arguments) for mode, arguments in json.loads(done.stdout).items()}


def once(pattern: str, replacement: str, text: str, last: bool = False) -> str:
    """`text` with the first, or last, match replaced; it has to be there."""
    matches = list(re.finditer(pattern, text, re.MULTILINE))
    assert matches, pattern
    match = matches[-1 if last else 0]
    return text[: match.start()] + match.expand(replacement) + text[match.end() :]


def test_good_kernels_break_no_rule(kernels: dict[str, Kernel]) -> None:
    for kernel in kernels.values():
        assert broken_rules(*kernel) == []
    assert kernels["data"].polled > 0
    assert poll_bits(kernels["data"].ptx)[0] == 128
    assert poll_bits(kernels["counter"].ptx) == ()


POLL = r" \{isVolatile = true\}( : tensor<)(\d+)x(\d+)x"


@pytest.mark.parametrize(
    ("pattern", "replacement", "last", "message"),
    [
        # A poll loop whose load may be kept in a register, or the look before it.
        (POLL, r"\1\2x\3x", True, "volatile loads before and"),
        (POLL, r"\1\2x\3x", False, "volatile loads before and"),
        (POLL, r" {isVolatile = true}\g<1>7x\3x", True, "polled in two layouts"),
        (
            r"(warpsPerCTA = \[)\d+, \d+(\], order = \[0, 1\])",
            r"\g<1>64, 64\2",
            False,
            "replicated",
        ),
        (r"^(#blocked\d* = #ttg\.)blocked", r"\1linear", False, "not blocked"),
        # Weights read again at every step, staged again, or staged nowhere.
        (r"tt\.addptr <x_gates>,", "tt.addptr <weights.weight_hh>,", False, "weights are loaded"),
        (
            r"tt\.addptr <storage.y>, (.* : !tt\.ptr<\w+>), i64",
            r"tt.addptr <storage.y>, \1, i32",
            False,
            "a 32-bit row base into storage.y",
        ),
        (r"^.*ttg\.local_alloc.*$", "", False, "tiles of weights in shared memory instead of"),
        (r"tt\.load (%\w+)", r"tt.atomic_rmw add, release, gpu, \1", True, "atomics outside"),
    ],
)
def test_data_mode_notices(
    kernels: dict[str, Kernel], pattern: str, replacement: str, last: bool, message: str
) -> None:
    kernel = kernels["data"]
    ttgir = kernel.ttgir
    pattern, replacement = kernel.named(pattern), kernel.named(replacement)
    if "blocked" in message or "replicated" in message:
        # Break the layout that is polled, not the first.
        polled = re.search(r"isVolatile.*(#blocked\d*)>", ttgir)
        assert polled is not None
        line = re.search(rf"^{polled[1]} = .*$", ttgir, re.MULTILINE)
        assert line is not None
        broken = ttgir.replace(line[0], once(pattern, replacement, line[0]))
    else:
        broken = once(pattern, replacement, ttgir, last)
    rules = broken_rules(*kernel._replace(ttgir=broken))
    assert any(message in rule for rule in rules), rules


def test_a_tile_staged_again_at_every_step_is_noticed(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["data"]
    outside = re.search(r"ttg\.local_alloc (%\w+)", kernel.ttgir)
    assert outside is not None
    ttgir = once(r"ttg\.local_alloc %\w+", f"ttg.local_alloc {outside[1]}", kernel.ttgir, last=True)
    rules = broken_rules(*kernel._replace(ttgir=ttgir))
    assert "a tile from outside the time loop is staged at every step" in rules


def test_a_poll_outside_the_time_loop_is_noticed(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["data"]
    ttgir = once(
        r"(tt\.load %\w+, %\w+, %\w+)( : tensor)", r"\1 {isVolatile = true}\2", kernel.ttgir
    )
    rules = broken_rules(*kernel._replace(ttgir=ttgir))
    assert "a volatile load outside the time loop" in rules


@pytest.mark.parametrize(
    ("pattern", "replacement", "last", "message"),
    [
        (r"ttg\.barrier all", "arith.nothing", True, "no barrier before a release"),
        (r"ttg\.barrier all", "arith.nothing", False, "no barrier after a poll loop"),
        (r"add, release, gpu", "add, relaxed, gpu", False, "neither announce nor wait"),
        (r"add, acquire, gpu", "add, relaxed, gpu", False, "neither announce nor wait"),
        (r"add, acquire, gpu", "add, acquire, cta", False, "reach the whole GPU"),
        (
            r"(tt\.load %\w+, %\w+, %\w+)( : tensor)",
            r"\1 {isVolatile = true}\2",
            False,
            "outside data",
        ),
    ],
)
def test_counter_mode_notices(
    kernels: dict[str, Kernel], pattern: str, replacement: str, last: bool, message: str
) -> None:
    kernel = kernels["counter"]
    ttgir = once(pattern, replacement, kernel.ttgir, last)
    rules = broken_rules(*kernel._replace(ttgir=ttgir))
    assert any(message in rule for rule in rules), rules


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"\.release", ".relaxed", "a release that is no atomic of GPU scope"),
        (r"\.gpu\.release", ".cta.release", "a release that is no atomic of GPU scope"),
        (r"\.acquire", ".relaxed", "an acquire that is no load of GPU scope"),
        (r"bar\.sync\s+0;(?=(?:(?!bar\.sync)[\s\S])*?\.release)", "", "between the stores and"),
        (r"wgmma\.mma_async", "fma", "no tensor-core instruction"),
    ],
)
def test_the_lowering_to_ptx_is_watched(
    kernels: dict[str, Kernel], pattern: str, replacement: str, message: str
) -> None:
    kernel = kernels["counter"]
    assert re.search(pattern, kernel.ptx)
    rules = broken_rules(*kernel._replace(ptx=re.sub(pattern, replacement, kernel.ptx)))
    assert any(message in rule for rule in rules), rules


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ld.volatile.global.b32 %r1, [%rd1];", "volatile loads outside data mode"),
        ("atom.global.gpu.relaxed.add.u32 %r1, [%rd1], 1;", "atomics outside counter mode"),
        ("red.global.gpu.relaxed.add.u32 [%rd1], 1;", "atomics outside counter mode"),
    ],
)
def test_a_launch_a_step_waits_for_nothing(
    kernels: dict[str, Kernel], line: str, message: str
) -> None:
    kernel = kernels["launch"]
    assert message in broken_rules(*kernel._replace(ptx=kernel.ptx + line))


def test_products_outside_tensor_cores_are_noticed(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["launch"]
    dot = "%d = tt.dot %a, %b, %c : tensor<16x16xf32, #ttg.dot_op<{opIdx = 0, parent = #blocked}>>"
    ttgir = once(r"^ +tt\.return", f"{dot}\ntt.return", kernel.ttgir)
    rules = broken_rules(*kernel._replace(ttgir=ttgir))
    assert rules == ["a product outside the tensor cores"]


def test_names_are_looked_up_where_they_stand(kernels: dict[str, Kernel]) -> None:
    """Sibling regions use a name twice: an operand is the latest definition before it."""
    text = """
      %a = tt.splat %x : t loc(#l)
      %b = tt.addptr %a, %i : t loc(#l)
      %a = tt.splat %y : t loc(#l)
      %c = arith.select %m, %b, %a : t loc(#l)
      %d = tt.load %c : t loc(#l)
    """
    assert list(operations(text))[-1].pointers() == {"x", "y"}
    kernel = kernels["data"]
    looped = [o for o in operations(kernel.ttgir, kernel.arguments) if "isVolatile" in o.text]
    assert all({"storage.y", "initial.h"} >= o.pointers() for o in looped)
    assert looped


def test_the_longest_loop_is_found_in_machine_code() -> None:
    lines = [
        "IADD3 R1, R1, 0x1, RZ",
        "BAR.SYNC.DEFER_BLOCKING 0x0",  # the outer loop begins here
        "LDG.E R2, desc[UR4][R2.64]",  # and the inner one here
        "@P0 BRA 0x20",
        "@!P1 BRA 0x60",  # forward
        "@P2 BRA 0x10",
        "EXIT",
        "BRA 0x70",  # to itself
    ]
    text = "\n".join(
        f"        /*{16 * i:04x}*/    {line} ;   /* 0x00 */" for i, line in enumerate(lines)
    )
    assert longest_loop(text) == lines[1:6]
    assert longest_loop("") == []

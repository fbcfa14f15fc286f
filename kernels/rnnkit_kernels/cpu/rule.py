"""Where the native engine is faster than torch's own layers, by what was measured.

Speed of torch.nn ÷ speed of the engine stands in benchmarks/results/ for an AMD EPYC with AVX-512
(Zen 5). What differs on Intel's processors, where torch's products are MKL's at their best, was
measured with a prototype of this engine on a Xeon with AVX-512.

* Sequences of several lengths, GRUs, and single steps without gradients: the engine.
* torch's dense LSTM is oneDNN's and as good: each wins at some shapes, by a tenth or a quarter.
* A single step with its backward pass, or of sequences of several lengths, costs Python more than
  the engine saves, unless it is large.
"""

from __future__ import annotations

from rnnkit_kernels.cpu.products import mkl_is_slow

IN_TORCH = ("lstm", "gru", "rnn_tanh", "rnn_relu")
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# Products of a single step below which its backward pass is left to torch.
FEW = 6_000_000


def faster(
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    trains: bool,
    ragged: bool,
    has_projections: bool = False,
) -> tuple[bool, str]:
    """Whether "auto" takes the engine, and why.

    Args:
        cell: a key of `CELLS` that torch has too.
        steps: T. batch: B. hidden: H.
        trains: whether a backward pass will follow.
        ragged: whether the sequences have several lengths.
        has_projections: whether h is projected.
    """
    if steps == 1 and cell != "lstm" and (trains or ragged):
        found = 2 * batch * GATES[cell] * hidden * hidden >= FEW
    elif ragged or has_projections or steps == 1:
        found = True
    elif cell == "lstm":
        found = _lstm(batch, hidden, trains)
    else:
        found = cell == "gru" or hidden < 512 or mkl_is_slow()
    if found:
        return True, "it was measured to be faster than torch's own layers at such shapes"
    return False, "at such shapes torch's own layers were measured to be as fast, or faster"


def _lstm(batch: int, hidden: int, trains: bool) -> bool:
    if not mkl_is_slow():
        return trains or batch <= 8 or hidden <= 200
    if batch == 1 or hidden <= 64:
        return True
    if trains:
        return batch >= 64 and 256 <= hidden <= 512
    return batch >= 64 and hidden >= 512

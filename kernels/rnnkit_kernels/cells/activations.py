"""σ, tanh and ReLU for Triton, accurate in float32 over the whole line.

tanh as 2σ(2x) − 1 loses every digit near zero, and (1 − e)/(1 + e) overflows. Near zero an odd
polynomial is used (least squares in s = x² on |x| < 0.6), elsewhere 1 − 2/(1 + exp(2|x|)), whose
exponential may overflow to infinity without harm.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(−x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Tanh, within about one unit in the last place of torch's."""
    s = x * x
    p = -0.00589389730 * s + 0.0207945797
    p = p * s - 0.0537832827
    p = p * s + 0.133319152
    p = p * s - 0.333332975
    magnitude = tl.abs(x)
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * magnitude))
    return tl.where(magnitude < 0.6, x + x * s * p, tl.where(x < 0, -far, far))


@triton.jit
def relu(x):
    """max(0, x) that keeps NaN, which `tl.maximum` drops on the GPU."""
    return tl.where(x < 0, 0.0, x)

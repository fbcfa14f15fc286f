r"""Penalties on recurrent weights, and on gradients on their way back, to be added to a loss.

Of the weights R alone, each gate's block by itself:

    identity_penalty          mean of (R - I)^2 over elements
    spectral_radius_penalty   (ρ(R) - 1)^2, ρ the largest |eigenvalue|
    spectral_norm_penalty     (σ(R) - 1)^2, σ the largest singular value

Of what reaches the states s_t = h_t, or (h_t, c_t), with v_t = ∂L/∂s_t (Pascanu et al. 2013, arXiv
1211.5063, eq. 9, who let gradients neither vanish nor explode on their way):

    omega             Ω = Σ_t (‖v_t ∂s_t/∂s_{t-1}‖ / ‖v_t‖ - 1)^2
    jacobian_penalty  (‖u ∂s_t/∂s_{t-k}‖ - 1)^2 for random unit vectors u
    contraction       ‖u ∂s_t/∂s_{t-k}‖^2

`contraction` has the wrong sign for a long memory: what makes it small makes gradients vanish.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rnnkit.nn.base import Recurrent
from rnnkit.nn.gradient_flow import unit_vectors
from rnnkit_kernels.functional import LayerStates, recurrent, watched_states

Form = Literal["squared", "norm"]

SMALLEST = 1e-20
"""A squared norm below this counts as none: the bound of Pascanu's own program."""


def identity_penalty(layer: Recurrent) -> Tensor:
    """Mean of (R − I)² over the elements of every gate's block, a scalar.

    At torch's initialisation it is about 1.3 / H. Per element, for a sum would swamp a loss.

    Raises:
        ValueError: With a projection, whose blocks are not square.
    """
    blocks = recurrent_blocks(layer, "I")
    eye = torch.eye(layer.hidden_size, dtype=blocks.dtype, device=blocks.device)
    penalty: Tensor = (blocks - eye).square().mean()
    return penalty


def spectral_radius_penalty(layer: Recurrent) -> Tensor:
    """(ρ − 1)², the mean over every gate's block, a scalar.

    From all eigenvalues, of which the largest is mostly a complex pair that power iteration misses:
    O(H³), 0.02 s at H = 200. Its gradient is defined where the largest one is simple.

    Raises:
        ValueError: With a projection, whose blocks are not square.
    """
    blocks = recurrent_blocks(layer, "eigenvalues")
    if not blocks.isfinite().all():  # of which eigvals would raise
        return blocks.sum() * torch.nan
    radii: Tensor = torch.linalg.eigvals(blocks).abs().amax(-1)
    penalty: Tensor = (radii - 1).square().mean()
    return penalty


def spectral_norm_penalty(layer: Recurrent) -> Tensor:
    """(σ − 1)², the mean over every gate's block, a scalar.

    σ bounds what one step does to a gradient, which ρ does not.
    """
    blocks = recurrent_blocks(layer)
    if not blocks.isfinite().all():
        return blocks.sum() * torch.nan
    largest: Tensor = torch.linalg.matrix_norm(blocks, 2)
    return (largest - 1).square().mean()


def recurrent_blocks(layer: Recurrent, needs: str = "") -> Tensor:
    """Every gate's block of every weight_hh of a layer, (N, H, P), in at least float32.

    Args:
        layer: Of rnnkit, with any number of layers and directions.
        needs: What only a square matrix has, for the error; empty: none.

    Raises:
        ValueError: It needs square ones, and the layer has a projection.
    """
    if needs and layer.proj_size:
        raise ValueError(
            f"{needs} needs square blocks of weight_hh; with a projection they are "
            f"{layer.hidden_size} x {layer.proj_size}"
        )
    # By their names and not as parameters: a parametrised weight is none.
    names = [name for name in layer._weight_names if name.startswith("weight_hh")]
    found = [
        block for name in names for block in torch.split(getattr(layer, name), layer.hidden_size)
    ]
    blocks = torch.stack(found)
    return blocks if blocks.dtype == torch.float64 else blocks.float()


def omega(states: LayerStates, form: Form = "squared") -> Tensor:
    """Pascanu's Ω of a layer that was watched, a scalar.

    Its gradient is the immediate one, to R alone, with all that the forward pass made and ∂L/∂s_t
    constant: that of their program, which needs no second differentiation. For the full one, to all
    that states and their gradients depend on, watch with `graph=True` and call `differentiate`.

    Args:
        states: After a backward pass, or after `differentiate`. The scale of the loss has no say.
        form: squared, as their program has it: the ratio of squared norms in place of norms, and
            the mean over the terms that count. norm, as the paper writes it: a sum over steps; here
            the mean over sequences and directions. Both leave terms with ‖v_t‖² < 1e-20 out, and
            with layer normalisation the first step: of a product R h_0 = 0 it normalises the
            slope is 1/√ε.

    Raises:
        ValueError: There is no such form.
        RuntimeError: The gradients are not known, or the layer keeps no gates (layer_norm).

    Example:
        >>> layer = rnnkit.RNN(3, 4)
        >>> with watch_states(layer) as states:
        ...     output, _ = layer(torch.randn(100, 2, 3))
        ...     output[-1].sum().backward()
        >>> omega(states[""][0]).backward()
    """
    if form not in ("squared", "norm"):
        raise ValueError(f"expected form squared or norm, got {form!r}")
    arrived = [states.hidden_gradient, states.cell_gradient]
    before = _squared_norm([part for part in arrived if part is not None])  # (T, B, M)
    after = _squared_norm(states.handed_back())
    counts = before >= SMALLEST
    if states.normalised:
        counts = counts & ~_begins(states)
    ratio = torch.where(counts, after / torch.where(counts, before, 1), 1)
    if form == "squared":
        return (ratio - 1).square().sum() / counts.sum().clamp(min=1)
    return (_root(ratio) - 1).square().sum(0).mean()


def jacobian_penalty(
    layer: Recurrent,
    states: LayerStates,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(‖u ∂s_t/∂s_{t−k}‖ − 1)², the mean over t = k, 2k, ... and sequences, a scalar.

    Every piece of k steps runs once more from s_{t−k}, which is constant, as the input is; the
    gradient, by double backward, is to all weights of the layer.

    Args:
        layer: That was watched. `weight_drop` does not act here; zoneout does by its mean.
        states: After a forward pass.
        steps: k, at most T. Pieces that the end of a sequence cuts are left out, and with layer
            normalisation the first one, see `omega`.
        generator: Draws u, a unit vector for each piece; None: torch's own.

    Raises:
        ValueError: No sequence has k steps.
    """
    return (_root(_pieces(layer, states, steps, generator)) - 1).square().mean()


def contraction(
    layer: Recurrent,
    states: LayerStates,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """‖u ∂s_t/∂s_{t−k}‖², the mean over t and sequences: it makes gradients vanish, a scalar.

    Arguments are those of `jacobian_penalty`, which has the target that a long memory needs. H
    times this is an estimate of the mean ‖∂s_t/∂s_{t−k}‖² in the Frobenius norm.
    """
    return _pieces(layer, states, steps, generator).mean()


def _squared_norm(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    # Squares of float16 would be zeros below 1e-4.
    exact = [part if part.dtype == torch.float64 else part.float() for part in parts]
    found: Tensor = torch.stack([part.square().sum(-1) for part in exact]).sum(0)
    return found


def _begins(states: LayerStates) -> Tensor:
    """Which steps start from the initial state, bool (T, B, M)."""
    total, batch, members = states.hidden.shape[:3]
    found = torch.zeros(total, batch, members, dtype=torch.bool, device=states.hidden.device)
    found[0, :, 0] = True
    if members == 2:
        last = states.lengths
        last = torch.full((batch,), total) if last is None else last
        found[(last - 1).clamp(min=0), torch.arange(batch), 1] = True
    return found


def _root(squared: Tensor) -> Tensor:
    """The root, whose gradient is 0 at 0 where torch's is infinite."""
    positive = squared > SMALLEST
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


def longest_piece(layer: Recurrent, states: LayerStates) -> int:
    """The largest k for `jacobian_penalty`; with layer normalisation the first piece has no say."""
    lengths = states.lengths
    longest = states.hidden.shape[0] if lengths is None else int(lengths.max())
    return longest // 2 if layer.layer_norm else longest


def _pieces(
    layer: Recurrent, states: LayerStates, steps: int, generator: torch.Generator | None
) -> Tensor:
    """‖u ∂s_t/∂s_{t−k}‖² of every piece of k steps of every sequence and direction, (N,)."""
    total, batch = states.hidden.shape[:2]
    lengths = states.lengths
    most = longest_piece(layer, states)
    if not 1 <= steps <= most:
        raise ValueError(f"expected steps from 1 to the {most} that a sequence has, got {steps}")
    longest = total if lengths is None else int(lengths.max())
    if lengths is None:
        lengths = torch.full((batch,), total)
    starts = torch.arange(0, longest - steps + 1, steps)
    piece, sequence = (starts[:, None] + steps <= lengths.cpu()).nonzero(as_tuple=True)
    device = states.hidden.device
    firsts, sequences = starts[piece].to(device), sequence.to(device)
    own = [states.hidden] + ([] if states.cell_state is None else [states.cell_state])
    found = []
    for m in range(states.directions):
        order = torch.arange(steps, device=device)
        first, sequence = firsts, sequences
        before, begins = first - 1, first == 0
        if m == 1:
            order, before = order.flip(0), first + steps
            begins = before == lengths.to(device)[sequence]
        if layer.layer_norm:  # see `omega`
            first, sequence, before, begins = (
                each[~begins] for each in (first, sequence, before, begins)
            )
        read = states.input[first + order[:, None], sequence]  # (k, N, D)
        starting = tuple(
            torch.where(begins[:, None], initial[m, sequence], value[before % total, sequence, m])
            .unsqueeze(0)
            .requires_grad_()
            for value, initial in zip(own, states.initial, strict=True)
        )
        weights = [getattr(layer, name) for name in _names(layer, states.layer, m)]
        # By the definition: what else could be differentiated twice would run by it as well.
        with torch.enable_grad(), watched_states(graph=True):
            _, ends = recurrent(
                states.cell,
                read,
                starting,
                weights,
                has_biases=layer.bias,
                has_projections=layer.proj_size > 0,
                extras=layer._extras,
            )
        sizes = [end.shape[2] for end in ends]
        vectors = unit_vectors(sizes, len(first), read, generator)
        arrived = [vector[None].to(end) for vector, end in zip(vectors, ends, strict=True)]
        handed = torch.autograd.grad(ends, starting, arrived, create_graph=True)
        found.append(_squared_norm([part[0] for part in handed]))
    return torch.cat(found)


def _names(layer: Recurrent, number: int, direction: int) -> list[str]:
    """The parameters of one layer in one direction, in the kernels' order."""
    each = len(layer._weight_names) // (layer.num_layers * (1 + layer.bidirectional))
    at = (number * (1 + layer.bidirectional) + direction) * each
    return layer._weight_names[at : at + each]

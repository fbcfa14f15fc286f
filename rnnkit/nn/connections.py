r"""What lies between the layers of a stack: paths around a layer, and norms of what it reads.

    residual    y = f(x) + x, or f(x) + W x where f changes the width
    highway     y = T ⊙ f(x) + (1 − T) ⊙ x,   T = σ(W_T x + b_T)

He et al. 2016 (arXiv 1512.03385, equations 1 and 2); Srivastava et al. 2015 (arXiv 1505.00387,
equation 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ConnectionName = Literal["plain", "residual", "highway", "dense"]
NormName = Literal["layer", "batch"]

TRANSFORM_BIAS = -2.0
"""b_T at the start. Srivastava et al. advise a negative one, such as −1 or −3, so that a fresh
stack hands on most of x, here 1 − σ(−2) = 88 % a layer, whatever the layers do."""


class Residual(nn.Module):
    """Adds what a layer has read to what it gave.

    Args:
        read_size: Width of what the layer reads.
        output_size: Width of what it gives; where it is another one, `projection`, learned and
            without a bias, brings what was read to it.
        device: Where the parameters lie.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        read_size: int,
        output_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Identity()
        if read_size != output_size:
            self.projection = nn.Linear(
                read_size, output_size, bias=False, device=device, dtype=dtype
            )

    def forward(self, output: Tensor, read: Tensor) -> Tensor:
        """The sum.

        Args:
            output: What the layer gave, (T, B, output_size).
            read: What it has read, (T, B, read_size).

        Returns:
            (T, B, output_size).
        """
        return output + self.projection(read)  # type: ignore[no-any-return]


class Highway(nn.Module):
    """A gate between what a layer gave and what it has read.

    Args:
        read_size: Width of what the layer reads.
        output_size: Width of what it gives, the same.
        device: Where the parameters lie.
        dtype: Of the parameters.

    Raises:
        ValueError: The widths differ.
    """

    def __init__(
        self,
        read_size: int,
        output_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if read_size != output_size:
            raise ValueError(
                f"connection highway needs layers that give the width they read, and one reads "
                f"{read_size} and gives {output_size} (both directions together): make them "
                "equal, or take connection residual, which projects"
            )
        self.transform = nn.Linear(read_size, output_size, device=device, dtype=dtype)
        nn.init.constant_(self.transform.bias, TRANSFORM_BIAS)

    def forward(self, output: Tensor, read: Tensor) -> Tensor:
        """The mixture.

        Args:
            output: What the layer gave, (T, B, H).
            read: What it has read, (T, B, H).

        Returns:
            (T, B, H).
        """
        gate = torch.sigmoid(self.transform(read))
        return gate * output + (1 - gate) * read


class StepBatchNorm(nn.Module):
    """`nn.BatchNorm1d` over the real steps of a batch: padding has no part in its statistics.

    All steps of all sequences are one population, and one running estimate serves every step, as in
    Laurent et al. 2016 (arXiv 1510.01378) and Amodei et al. 2016 (arXiv 1512.02595). Cooijmans et
    al. 2016 (arXiv 1603.09025) keep an estimate for each step, for a state that starts at zero is
    another population in its first steps; they normalise inside the recurrence too, where a gain of
    0.1 keeps tanh from saturating. Here, between layers, the gain begins with 1, and an estimate a
    step would be worth little: few sequences reach the late steps, none those beyond the longest,
    and the windows of a language model have no first step.

    What the shared one costs: the first steps are normalised by what is true of the later ones. And
    in training any batch norm over steps lets a step see those after it, by their mean and
    variance, which a language model must do without when it is used. A layer norm does neither.

    Args:
        width: D.
        device: Where the parameters lie.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, device=device, dtype=dtype)

    def forward(self, input: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input: (T, B, D), or any other number of dimensions before D.
            rows: int64 (N,), where in T·B real steps lie; None: everywhere.

        Returns:
            Of the shape of `input`, zero where no real step is.

        Raises:
            ValueError: There are fewer than two real steps while training.
        """
        flat = input.reshape(-1, input.shape[-1])
        real = flat if rows is None else flat.index_select(0, rows)
        if self.training and len(real) < 2:
            raise ValueError(
                f"norm batch takes a mean and a variance over the real steps of a batch and needs "
                f"2 or more while training, got {len(real)} of {len(flat)} steps: make batches "
                "larger, or take norm layer"
            )
        normed: Tensor = self.norm(real)
        if rows is not None:
            normed = normed.new_zeros(flat.shape).index_copy(0, rows, normed)
        return normed.view(input.shape)

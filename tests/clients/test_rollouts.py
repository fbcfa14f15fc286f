"""`resets=` gives what recurrent PPO implementations compute on the same rollouts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from tests.nn.layers import assert_close, gradients, leaf, tensors

STEPS, BATCH, FEATURES, HIDDEN = 24, 6, 5, 8


@pytest.fixture
def rollout() -> tuple[Tensor, Tensor]:
    """Observations (T, B, D), and where episodes begin: at the first step of some too."""
    torch.manual_seed(0)
    begins = torch.rand(STEPS, BATCH) < 0.15
    begins[0, :2] = torch.tensor([True, False])
    return torch.randn(STEPS, BATCH, FEATURES, dtype=torch.float64), begins


def twins(name: str) -> tuple[Any, Any]:
    """torch's layer, and rnnkit's with the same parameters."""
    theirs = getattr(nn, name)(FEATURES, HIDDEN, batch_first=True, dtype=torch.float64)
    ours = getattr(rnnkit, name)(FEATURES, HIDDEN, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def state(name: str) -> Any:
    values = torch.randn(2, 1, BATCH, HIDDEN, dtype=torch.float64)
    return tuple(values) if name == "LSTM" else values[0]


def test_stable_baselines_loops_over_steps(rollout: tuple[Tensor, Tensor]) -> None:
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    observations, begins = rollout
    theirs, ours = twins("LSTM")
    theirs.batch_first = False
    x, hx = leaf(observations), leaf(state("LSTM"))

    def flat(values: Tensor) -> Tensor:
        """As its buffers have them: sequence after sequence."""
        return values.transpose(0, 1).flatten(0, 1)

    process = policies.RecurrentActorCriticPolicy._process_sequence
    expected = process(flat(x), hx, flat(begins).double(), theirs)
    output, last = ours(x, hx, resets=begins)
    found = (flat(output), last)
    assert_close(found, expected)
    leaves = [x, *tensors(hx)]
    assert_close(
        gradients(found, [*leaves, *ours.parameters()]),
        gradients(expected, [*leaves, *theirs.parameters()]),
    )


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_torchrl_splits_and_pads(name: str, rollout: tuple[Tensor, Tensor]) -> None:
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    observations, begins = rollout
    theirs, ours = twins(name)
    keys = ["h", "c"][: 2 if name == "LSTM" else 1]
    module = getattr(modules, f"{name}Module")(
        in_keys=["x", *keys], out_keys=["y", *(("next", key) for key in keys)],
        **{name.lower(): theirs},
    )  # fmt: skip
    x, hx = leaf(observations), leaf(state(name))
    # Each step of the rollout carries the state that the policy held before it: zeros after a
    # reset, and of the others the first alone is read.
    held = {
        key: torch.cat(
            [
                value.masked_fill(begins[0].unsqueeze(-1), 0).transpose(0, 1).unsqueeze(1),
                value.new_zeros(BATCH, STEPS - 1, 1, HIDDEN),
            ],
            1,
        )
        for key, value in zip(keys, tensors(hx), strict=True)
    }
    given = {"x": x.transpose(0, 1), "is_init": begins.t().unsqueeze(-1), **held}
    with modules.set_recurrent_mode(True):
        expected = module(tensordict.TensorDict(given, [BATCH, STEPS]))
    output, last = ours(x, hx, resets=begins)
    assert_close(output, expected["y"].transpose(0, 1))
    for key, value in zip(keys, tensors(last), strict=True):
        assert_close(value, expected["next", key][:, -1].transpose(0, 1))
    leaves = [x, *tensors(hx)]
    assert_close(
        gradients(output, [*leaves, *ours.parameters()]),
        gradients(expected["y"].transpose(0, 1), [*leaves, *theirs.parameters()]),
    )

"""`replace_rnns` in packages that know nothing of it: bit for bit, or by the tolerance rule."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from tests.kernels.layers import assert_as_exact
from tests.nn.layers import assert_equal, tensors

# Runs a model in its dtype.
Run = Callable[[Any], Any]


def openunmix() -> tuple[nn.Module, int, Run]:
    """Music separation: three bidirectional LSTM layers with dropout between them."""
    package = pytest.importorskip("openunmix.model")
    spectrogram = torch.rand(2, 1, 33, 20)

    def run(model: Any) -> Any:
        return model(spectrogram.to(model.input_mean.dtype))

    return package.OpenUnmix(nb_bins=33, nb_channels=1, hidden_size=16, nb_layers=3), 1, run


def stanza() -> tuple[nn.Module, int, Run]:
    """Sentence and word boundaries: two bidirectional LSTMs over packed characters."""
    package = pytest.importorskip("stanza.models.tokenization.model")
    args = {
        "rnn_layers": 2, "conv_res": None, "hierarchical": True, "use_mwt": False,
        "tok_noise": 0.1, "hier_invtemp": 0.5,
    }  # fmt: skip
    args["feat_dim"] = 3
    model = package.Tokenizer(args, 30, 8, 16, dropout=0.3, feat_dropout=0.1)
    characters, features = torch.randint(30, (4, 25)), torch.rand(4, 25, 3)

    def run(model: Any) -> Any:
        given = features.to(model.tok_clf.weight.dtype)
        return model(characters, given, [25, 20, 11, 3])

    return model, 2, run


def stable_baselines() -> tuple[nn.Module, int, Run]:
    """Recurrent PPO: an LSTM for the actor, another for the critic, over rollouts with resets."""
    package = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    types = pytest.importorskip("sb3_contrib.common.recurrent.type_aliases")
    spaces = pytest.importorskip("gymnasium.spaces")
    model = package.RecurrentActorCriticPolicy(
        spaces.Box(-1, 1, (5,)), spaces.Discrete(3), lambda _: 0.001, lstm_hidden_size=16
    )
    model.extract_features = lambda observations, *_: observations  # its own casts to float32
    observations, actions = torch.rand(4 * 12, 5), torch.randint(3, (4 * 12,))
    starts, held = (torch.rand(4 * 12) < 0.2).float(), torch.rand(4, 1, 4, 16)

    def run(model: Any) -> Any:
        dtype = model.action_net.weight.dtype
        h, c, critic_h, critic_c = held.to(dtype)
        states = types.RNNStates((h, c), (critic_h, critic_c))
        return model.evaluate_actions(observations.to(dtype), actions, states, starts.to(dtype))

    return model, 2, run


PACKAGES = [openunmix, stanza, stable_baselines]


def outcome(model: nn.Module, run: Run) -> list[Tensor]:
    """Results, and gradients of all parameters."""
    torch.manual_seed(1)
    results = [value for value in tensors(run(model)) if value.is_floating_point()]
    loss = sum(value.square().sum() for value in results)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)  # type: ignore[arg-type]
    return [*results, *(value for value in found if value is not None)]


def without_dropout(model: nn.Module) -> nn.Module:
    """rnnkit's engines draw other random numbers than torch does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("package", PACKAGES)
def test_torchs_bits(package: Callable[[], tuple[nn.Module, int, Run]]) -> None:
    torch.manual_seed(0)
    model, count, run = package()
    theirs = outcome(copy.deepcopy(model), run)
    assert rnnkit.replace_rnns(model, backend="torch") == count
    assert_equal(outcome(model, run), theirs)


@pytest.mark.parametrize("package", PACKAGES)
def test_auto_follows_the_tolerance_rule(
    package: Callable[[], tuple[nn.Module, int, Run]],
) -> None:
    torch.manual_seed(0)
    model, count, run = package()
    theirs = without_dropout(model)
    ours, double = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    assert rnnkit.replace_rnns(ours) == count
    with torch.backends.mkldnn.flags(enabled=False):  # step by step in ATen
        plain = outcome(theirs, run)
    assert_as_exact(outcome(ours, run), plain, outcome(double, run), torch.float32)

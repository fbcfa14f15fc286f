"""Opacus refuses the layers before it wraps them; it is tested where it is installed."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import rnnkit
import rnnkit.compat
from tests.nn.layers import CLASSES, assert_close

opacus = pytest.importorskip("opacus")
validators = pytest.importorskip("opacus.validators")


class OwnGRU(rnnkit.GRU):
    """A subclass is no other case."""


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
@pytest.mark.parametrize("name", CLASSES)
def test_the_validator_refuses_a_layer_and_names_what_to_use(name: str, module: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), getattr(module, name)(3, 4))
    errors = validators.ModuleValidator.validate(model, strict=False)
    assert [type(error).__name__ for error in errors] == ["ShouldReplaceModuleError"]
    assert f"use opacus.layers.DP{name}" in str(errors[0])
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 5, 3)))
    with pytest.raises(validators.errors.UnsupportedModuleError, match=f"rnnkit's {name} gives no"):
        opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=data,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )


def test_a_subclass_is_refused_and_others_are_not() -> None:
    for model, number in ((OwnGRU(3, 4), 1), (nn.Sequential(nn.Linear(3, 4)), 0)):
        assert len(validators.ModuleValidator.validate(model, strict=False)) == number


@pytest.mark.parametrize("name", CLASSES)
def test_what_to_use_takes_the_state_dict(name: str) -> None:
    layer = CLASSES[name][0](3, 4, 2, batch_first=True)
    other = getattr(opacus.layers, f"DP{name}")(3, 4, num_layers=2, batch_first=True)
    other.load_state_dict(layer.state_dict())
    input = torch.randn(2, 5, 3)
    assert_close(other(input)[0], layer(input)[0])


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_that_was_built_before_opacus_was_imported_is_refused(
    name: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "opacus")
        patch.setattr(validators.ModuleValidator, "VALIDATORS", {})
        model = nn.Sequential(getattr(module, name)(3, 4))
        assert list(model.parameters())
        assert not validators.ModuleValidator.VALIDATORS
    with monkeypatch.context() as patch:
        patch.setattr(validators.ModuleValidator, "VALIDATORS", {})
        errors = validators.ModuleValidator.validate(model, strict=False)
        assert [type(error).__name__ for error in errors] == ["ShouldReplaceModuleError"]


@pytest.mark.compiler
def test_a_forward_that_looks_at_the_parameters_compiles_whole() -> None:
    layer = rnnkit.GRU(3, 4)

    def forward(input: torch.Tensor) -> torch.Tensor:
        h = next(layer.parameters()).new_zeros(1, 2, 4)
        return layer(input, h)[0]

    input = torch.randn(5, 2, 3)
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    assert_close(compiled(input), forward(input))

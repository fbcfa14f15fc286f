"""Classes of users that derive from the layers and the cells."""

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnkit
from rnnkit.nn.base import Recurrent
from tests.nn.layers import CLASSES

CELLS: dict[str, Any] = {
    "LSTMCell": rnnkit.LSTMCell,
    "GRUCell": rnnkit.GRUCell,
    "RNNCell": rnnkit.RNNCell,
}


REGISTERED: list[str] = []


class Registered(type):
    """A metaclass as plugin systems have them."""

    def __init__(cls, *arguments: Any) -> None:
        super().__init__(*arguments)
        REGISTERED.append(cls.__name__)


@pytest.mark.parametrize("name", [*CLASSES, *CELLS])
def test_a_subclass_may_have_any_metaclass(name: str) -> None:
    base: Any = CELLS[name] if name in CELLS else CLASSES[name][0]

    class Plugin(base, metaclass=Registered):
        pass

    assert REGISTERED[-1] == "Plugin"
    shape = (2, 3) if name in CELLS else (5, 2, 3)
    assert Plugin(3, 4)(torch.randn(shape)) is not None


@pytest.mark.parametrize("name", [*CLASSES, *CELLS])
def test_a_subclass_may_be_an_abstract_base_class(name: str) -> None:
    base: Any = CELLS[name] if name in CELLS else CLASSES[name][0]

    class Encoder(base, ABC):
        @abstractmethod
        def width(self) -> int: ...

    class Own(Encoder):
        def width(self) -> int:
            return self.hidden_size

    with pytest.raises(TypeError, match="abstract"):
        Encoder(3, 4)
    assert Own(3, 4).width() == 4


def test_the_common_base_says_what_to_derive_from() -> None:
    with pytest.raises(NotImplementedError, match="Recurrent has no gates: derive from LSTM"):
        Recurrent(3, 4)


class Mixin(nn.Module):
    """Takes part in the chain of `super()` calls, as mixins of model zoos do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mixed = True

    def scaled(self, value: Tensor) -> Tensor:
        return 2 * value

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.applied = True
        return super()._apply(fn, recurse)


@pytest.mark.parametrize("module", [rnnkit, rnnkit.compat])
@pytest.mark.parametrize("name", CLASSES)
def test_a_mixin_of_modules_takes_part(name: str, module: Any) -> None:
    base: Any = getattr(module, name)

    class Own(base, Mixin):
        pass

    layer = Own(3, 4).to("cpu")
    assert layer.mixed
    assert layer.applied
    assert layer(layer.scaled(torch.randn(5, 2, 3)))[0].shape == (5, 2, 4)

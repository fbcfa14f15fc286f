"""`backend="triton"` on a CPU: refused with a reason, or interpreted."""

import pytest
import torch

import rnnkit
from tests.nn.layers import CLASSES, build
from tests.nn.test_imports import run


@pytest.mark.parametrize("value", [None, "0"])
@pytest.mark.parametrize("name", CLASSES)
def test_it_is_refused_on_cpu_tensors(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    layer = CLASSES[name][0](3, 4, backend="triton")
    with pytest.raises(RuntimeError, match=r"needs a GPU.* is on cpu.*TRITON_INTERPRET=1"):
        layer(torch.randn(5, 2, 3))
    layer.backend = "auto"
    assert layer(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_a_projection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layer = build("LSTM with projection", 3, 4, backend="triton")
    with pytest.raises(RuntimeError, match="projection"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.parametrize("value", ["cuda", "Triton", None, 1])
def test_an_unknown_backend_is_refused_by_value(value: object) -> None:
    with pytest.raises(ValueError, match=f"got {value!r}"):
        rnnkit.LSTM(3, 4, backend=value)  # type: ignore[arg-type]
    layer = rnnkit.LSTM(3, 4)
    layer.backend = value  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"got {value!r}"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.process
def test_the_interpreter_computes_what_torch_computes() -> None:
    # Triton reads TRITON_INTERPRET where a kernel is decorated: a fresh interpreter.
    code = """
    import torch, rnnkit
    from torch.nn.utils.rnn import pack_padded_sequence
    from tests.nn.layers import STANDARD, assert_close, build, gradients, leaf, random_state
    from tests.nn.layers import tensors, twins

    lengths = torch.tensor([2, 3, 1])
    for kind in ("LSTM", "GRU", "RNN tanh", "RNN relu", "GRU reset before"):
        # Two layers one way; the forms of shorter sequences both ways.
        for options, forms in (
            ({"num_layers": 2}, ("batched",)),
            ({"bidirectional": True}, ("packed", "lengths")),
        ):
            torch.manual_seed(0)
            layer = build(kind, 3, 20, **options, backend="triton")
            if kind in STANDARD:
                other = twins(kind, 3, 20, **options, dtype=torch.float64)[1]
            else:
                other = build(kind, 3, 20, **options, dtype=torch.float64)
            other.load_state_dict(layer.state_dict())
            input, hx = torch.randn(3, 3, 3), random_state(layer, 3)
            assert rnnkit.explain(layer, input).decision.engine in ("launch", "resident")
            for form in forms:
                found = []
                for model, dtype in ((layer, torch.float32), (other, torch.float64)):
                    x = input.to(dtype).requires_grad_()
                    h = leaf(hx)
                    h = tuple(v.detach().to(dtype).requires_grad_() for v in tensors(h))
                    given = h if len(h) == 2 else h[0]
                    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                    if form == "batched":
                        result = model(x, given)
                    elif form == "packed" or model is other and kind in STANDARD:
                        result = model(packed, given)
                    else:
                        result = model(x, given, lengths=lengths)
                    if form == "lengths":
                        output, *last = tensors(result)
                        if not isinstance(result[0], torch.Tensor):
                            output = torch.nn.utils.rnn.pad_packed_sequence(result[0])[0]
                            last = tensors(result[1])
                        result = (output, *last)
                    leaves = [x, *h, *model.parameters()]
                    found.append([*filter(torch.is_floating_point, tensors(result)),
                                  *gradients(result, leaves)])
                mine, exact = found
                # Sums of up to 480 float32 products of size one.
                assert_close(mine, [v.float() for v in exact], rtol=1e-5, atol=2e-5)
                print(kind, form)
    """
    assert len(run(code, TRITON_INTERPRET="1").splitlines()) == 5 * 3


@pytest.mark.process
def test_the_interpreter_draws_what_the_loop_draws() -> None:
    """Zoneout and dropout between layers: one seed gives one mask on every engine."""
    code = """
    import copy
    import torch, rnnkit
    from torch.nn.utils.rnn import pack_padded_sequence
    from tests.nn.layers import CLASSES, assert_close, gradients, leaf, tensors

    for name, options in (
        ("LSTM", {"peephole": True, "zoneout": (0.2, 0.5), "dropout": 0.3, "weight_drop": 0.2}),
        ("LSTM", {"coupled": True, "zoneout": 0.3, "recompute": True}),
        ("GRU", {"reset_after": False, "zoneout": 0.3, "dropout": 0.3}),
    ):
        layer = CLASSES[name][0](3, 20, 2, bidirectional=True, backend="triton", **options)
        loop = copy.deepcopy(layer)
        loop.backend = "eager"
        x = torch.randn(3, 3, 3)
        resets = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1]]).bool()
        found = []
        for model in (layer, loop):
            own = leaf(x)
            packed = pack_padded_sequence(own, torch.tensor([2, 3, 1]), enforce_sorted=False)
            torch.manual_seed(3)
            output, last = model(packed)
            result = (output.data, last, model(own, resets=resets))
            found.append([*tensors(result), *gradients(result, [own, *model.parameters()])])
        assert_close(*found, rtol=1e-5, atol=2e-5)
        print([rnnkit.explain(model, x).decision.engine for model in (layer, loop)])
    """
    found = run(code, TRITON_INTERPRET="1").splitlines()
    assert found == ["['resident', 'eager']"] * 3

import csv
from pathlib import Path

import pytest
import torch

import rnnkit
from rnnkit.nn.gradient_flow import gradient_flow
from rnnkit.training import gradients
from rnnkit.training.command import run
from tests.small_tasks import language_model, tagging


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fresh_cells_fill_a_table_a_csv_and_a_picture(tmp_path, capsys):
    out = tmp_path / "flow.png"
    options = ["--cells", "tanh", "lstm", "--hidden", "6", "--input", "3", "--steps", "12"]
    assert gradients.main([*options, "--forget-bias", "1", "--exact", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    found = rows(tmp_path / "flow.csv")
    names = {(row["name"], row["loss"]) for row in found}
    lstm = "LSTM, forget bias 1"
    losses = {(lstm, loss) for loss in ("last", "sum", "cell")}
    assert names == losses | {("tanh", "last"), ("tanh", "sum")}
    assert [row["step"] for row in found[:12]] == [str(t) for t in range(1, 13)]
    for row in found:
        norms = {
            name: float(row[name]) for name in row if name not in ("name", "loss") and row[name]
        }
        if "bound" in norms:
            assert row["name"] == "tanh"
            assert norms["exact"] <= norms["bound"] * (1 + 1e-6)
        if "cell" in norms:
            assert norms["both"] >= norms["cell"]
        assert ("forget" in norms) == (row["loss"] == "cell")
    shown = capsys.readouterr().out
    assert "steps before the last" in shown
    assert f"{lstm}, c alone" in shown


def test_norms_are_those_of_the_layer_with_this_seed(tmp_path):
    options = ["--cells", "gru", "--hidden", "6", "--input", "3", "--steps", "9", "--seed", "4"]
    gradients.main([*options, "--sequences", "2", "--out", str(tmp_path / "a.png")])
    torch.manual_seed(4)
    input = torch.randn(9, 2, 3)
    layer = rnnkit.GRU(3, 6).double()
    (flow,) = gradient_flow(layer, input.double(), generator=torch.Generator().manual_seed(4))
    ours = [float(row["both"]) for row in rows(tmp_path / "a.csv") if row["loss"] == "last"]
    torch.testing.assert_close(torch.tensor(ours), flow.both.mean(1).float())


@pytest.mark.training
@pytest.mark.parametrize(
    ("task", "names"),
    [
        (language_model, {"rnn, layer 1", "rnn, layer 2"}),
        (tagging, {"rnn, forward", "rnn, backward"}),  # its words have one character
    ],
)
def test_layers_of_a_checkpoint_read_a_batch_of_its_data(task, names, tmp_path, capsys):
    arguments = task(tmp_path)
    run(["fit", *arguments, "--trainer.max_steps", "1", "--trainer.default_root_dir", str(tmp_path),
         "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])  # fmt: skip
    capsys.readouterr()
    (checkpoint,) = tmp_path.glob("*/version_0/checkpoints/last.ckpt")
    out = tmp_path / "flow.png"
    assert gradients.main(["--ckpt", str(checkpoint), "--out", str(out)]) == 0
    assert {row["name"] for row in rows(tmp_path / "flow.csv")} == names
    shown = capsys.readouterr().out
    assert "val/" not in shown
    assert ("left out: characters.rnn" in shown) == (task is tagging)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1"], "expected --steps of 2 or more, got 1"),
        (["--hidden", "0"], "expected --hidden of 1 or more, got 0"),
        (["--ckpt", "a.ckpt", "--steps", "9"], "--steps is for fresh cells"),
        (["--ckpt", "a.ckpt"], "there is no .*config.yaml"),
        (["--config", "a.yaml"], "name it with --ckpt"),
        (["--", "--data.window", "9"], "name it with --ckpt"),
        (["--exact", "--cells", "lstm", "--hidden", "129"], "258 units, and at most 256"),
    ],
)
def test_what_makes_no_sense_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        gradients.main(options)

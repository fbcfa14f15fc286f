"""`rnnkit plot` on small tables of metrics."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from rnnkit.cli import main
from rnnkit.training.plot import epochs_at, find_run, seconds_at

ONE = (
    "epoch,step,train/ppl,train/seconds,val/ppl\n"
    "0,4,90,10,\n0,9,60,20,\n0,9,,,70\n1,14,50,40,\n1,19,40,50,\n1,19,,,65\n2,24,30,60,\n2,24,,,66\n"
)
TWO = "epoch,step,train/ppl,val/ppl,val/f1\n0,9,80,,\n0,9,,75,0.5\n1,19,,60,0.75\n1,19,,,\n"


@pytest.fixture
def runs(tmp_path):
    folders = [tmp_path / "runs" / name / "version_0" for name in ("small", "large")]
    for folder, text in zip(folders, (ONE, TWO), strict=True):
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    return folders


@pytest.fixture
def plot(capsys, monkeypatch, tmp_path):
    """Runs the command; gives its status, output, errors, and the axes that it drew."""
    drawn = []
    save = Figure.savefig

    def keep(figure, *arguments, **settings):
        drawn.append(figure.axes[0])
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        status = main(["plot", *map(str, arguments)])
        return status, *capsys.readouterr(), drawn[-1] if drawn else None

    return run


def points(axes):
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_marker() != "*"
    ]


def test_runs_are_laid_over_each_other_with_their_best_values(runs, plot, tmp_path):
    status, output, _, axes = plot(runs[0], runs[1] / "metrics.csv", "--out", "a/both.png")
    assert status == 0
    assert output.splitlines() == [
        "small, version_0: val/ppl best 65 at step 20",
        "large, version_0: val/ppl best 60 at step 20",
        "a/both.png",
    ]
    assert (tmp_path / "a" / "both.png").read_bytes().startswith(b"\x89PNG")
    assert points(axes) == [
        ([5, 10, 15, 20, 25], [90, 60, 50, 40, 30]),
        ([10, 20, 25], [70, 65, 66]),
        ([10], [80]),
        ([10, 20], [75, 60]),
    ]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(20, 65), (20, 60)]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "small, version_0: best 65 at step 20",
        "large, version_0: best 60 at step 20",
    ]


def test_a_higher_score_of_some_metrics_is_better(runs, plot):
    _, output, _, axes = plot(runs[1], "--metric", "f1")
    assert "val/f1 best 0.75 at step 20" in output
    assert axes.get_yscale() == "linear"


def test_a_stage_may_be_named(runs, plot):
    _, output, _, axes = plot(runs[0], "--metric", "train/ppl")
    assert "train/ppl best 30 at step 25" in output
    assert points(axes) == [([5, 10, 15, 20, 25], [90, 60, 50, 40, 30])]


def test_a_metric_that_is_no_score_shows_its_last_value(runs, plot):
    assert "train/seconds last 60 at step 25" in plot(runs[0], "--metric", "seconds")[1]


def test_epochs_are_counted_from_the_steps_in_them(runs, plot):
    run = find_run(runs[0])
    # Ten steps an epoch; half of the third is there.
    assert epochs_at(run, [4, 9, 14, 19, 24]) == [0.5, 1, 1.5, 2, 2.5]
    assert points(plot(runs[0], "--x", "epoch")[3])[1][0] == [1, 2, 2.5]


def test_a_run_that_went_on_keeps_its_epochs(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val/ppl\n2,29,5\n3,34,4\n3,39,4\n4,41,3\n")
    found = epochs_at(find_run(tmp_path), [24, 29, 34, 39, 44])
    assert found == [2.5, 3, 3.5, 4, 4.5]


def test_seconds_between_the_logged_steps_are_estimated(runs, plot):
    assert seconds_at(find_run(runs[0]), [0, 4, 9, 12, 14, 99]) == [10, 10, 20, 32, 40, 60]
    status, _, errors, _ = plot(*runs, "--x", "time")
    assert status == 1
    assert "large/version_0/metrics.csv has no column train/seconds: choose --x step" in errors


def test_long_runs_are_drawn_in_hours(tmp_path, plot):
    (tmp_path / "metrics.csv").write_text("step,train/seconds,val/f1\n0,0,0.1\n9,9000,0.2\n")
    axes = plot(tmp_path, "--metric", "f1", "--x", "time")[3]
    assert axes.get_xlabel() == "hours of training"
    assert points(axes) == [([0, 2.5], [0.1, 0.2])]


def test_runs_of_the_same_name_are_told_by_their_paths(runs, plot, tmp_path):
    other = tmp_path / "elsewhere" / "small" / "version_0"
    other.mkdir(parents=True)
    (other / "metrics.csv").write_text(TWO)
    first, second, _ = plot(runs[0], other)[1].splitlines()
    assert first.startswith(f"{runs[0]}: ")
    assert second.startswith(f"{other}: ")


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        (None, [], "run has no metrics.csv"),
        ("", [], "metrics.csv is empty: nothing was logged yet"),
        ("a,b\n1,2\n", [], "metrics.csv has no column step"),
        (TWO, ["--metric", "bleu"], "no value of bleu: it has train/ppl, val/f1, val/ppl"),
        ("step,val/ppl\n1,nan\n", [], "no value of ppl: it has no metric"),
        ("step,val/ppl\n1,3\n", ["--x", "epoch"], "has no column epoch: choose --x step"),
        (TWO, ["--out", "x.bmpx"], "'bmpx' is not supported"),
    ],
)
def test_what_cannot_be_drawn_is_told(content, arguments, expected, tmp_path, plot):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "metrics.csv").write_text(content)
    status, output, errors, _ = plot(folder, *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith("rnnkit plot: ")
    assert expected in errors
    assert not list(tmp_path.glob("*.png"))


def test_a_folder_of_runs_names_them(runs, plot):
    errors = plot(runs[0].parent)[2]
    assert "small has no metrics.csv: it holds runs, name one of them: version_0" in errors
    errors = plot(runs[0].parents[1])[2]
    assert "has no metrics.csv: it holds runs, name one of them: " in errors
    assert str(Path("small", "version_0")) in errors
    assert "nowhere does not exist" in plot("nowhere")[2]

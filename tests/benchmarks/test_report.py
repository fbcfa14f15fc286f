import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import benchmarks
from benchmarks import charts, report
from benchmarks.cases import MODES
from benchmarks.results import Record, Results
from tests.benchmarks.planted import cpu_quick, gpu_full, record, results

SLOW_CASES = ("ptb-medium", "persistent-1024-b128", "translation-encoder")


def page(run: Results, folder: Path) -> str:
    return report.render(run, folder / "run.json", folder)[0].read_text()


def details(run: Results, folder: Path, mode: str = "train") -> str:
    report.render(run, folder / "run.json", folder)
    return (folder / f"{mode}.md").read_text()


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


@pytest.fixture
def gpu() -> Results:
    """Of the GPU's run the cases with the longest names and all sweeps, in one dtype."""
    whole = gpu_full()
    kept = [r for r in whole.records if r.case.startswith(("sweep-", *SLOW_CASES))]
    kept = [r for r in kept if r.dtype == "bf16"]
    return replace(whole, records=kept)


# The table of the terminal


def test_the_fastest_peer_comes_first_and_those_without_a_time_last() -> None:
    run = results(
        record("rnnkit data", status="absent", message="too wide"),
        record("loop in PyTorch", 9.0),
        record("rnnkit auto", 1.0),
        record("torch.nn", 2.0),
    )
    lines = report.table(run).splitlines()
    peers = [line[:24].strip() for line in lines[2:]]
    assert peers == ["rnnkit auto", "torch.nn", "loop in PyTorch", "rnnkit data"]
    assert lines[0].startswith("ptb-small, LSTM, fp32, train (T 20, B 20, D 200, H 200, 2 layers)")


def test_a_row_holds_milliseconds_time_per_step_and_speed_up() -> None:
    run = results(
        record("torch.nn", 3.0), record("rnnkit auto", 2.0, peak_bytes=3 * 2**20, engine="data")
    )
    row = report.table(run).splitlines()[2].split()
    # 2 ms over 20 steps are 100 µs.
    assert row[:5] == ["rnnkit", "auto", "2.00", "100", "1.50×"]
    assert row[6:] == ["3.00", "data"]


def test_no_line_of_the_table_is_wider_than_a_terminal() -> None:
    long = record("flashrnn cuda_fused", status="failed", message="out of memory " * 20)
    widths = [len(line) for line in report.table(results(long, record("loop", 1.0))).splitlines()]
    assert max(widths) == report.COLUMNS


def test_without_the_baseline_there_is_no_speed_up() -> None:
    assert "×" not in report.table(results(record("rnnkit auto", 2.0)))
    failed = record("torch.nn", status="failed", message="no memory")
    assert "×" not in report.table(results(failed, record("rnnkit auto", 2.0)))


def test_a_peer_that_was_wrong_has_no_time() -> None:
    # Samples that were taken all the same must not be shown.
    wrong = record("rnnkit auto", 1.234, status="wrong", message="error 3 times what is allowed")
    text = report.table(results(record("torch.nn", 2.0), wrong))
    assert "wrong: error 3 times what is allowed" in text
    assert "1.23" not in text


# The page


def test_the_page_says_on_what_with_what_and_from_which_commit(tmp_path: Path) -> None:
    text = page(cpu_quick(), tmp_path)
    assert text.startswith("# Benchmarks on Planted CPU, 2 cores\n")
    for part in ("2026-01-02", "`0123abc`", "    python -m benchmarks --quick", "| threads | 2 |"):
        assert part in text.split("## ")[0]


def test_the_link_to_the_json_is_relative(tmp_path: Path) -> None:
    source = tmp_path / "raw data" / "run.json"
    text = report.render(cpu_quick(), source, tmp_path / "page")[0].read_text()
    assert "[run.json](../raw%20data/run.json)" in text
    assert str(tmp_path) not in text


def test_a_failed_peer_shows_its_message_on_one_line(tmp_path: Path) -> None:
    failed = record("torchrl", status="failed", message="no\nmemory | left")
    text = page(results(record("torch.nn", 1.0), failed), tmp_path)
    line = "- **torchrl**, failed: no memory \\| left (every case)"
    assert line in section(text, "Without a time").splitlines()


def test_one_line_tells_of_all_cases_without_a_time_for_one_reason(tmp_path: Path) -> None:
    def missing(case: str, cell: str, dtype: str = "fp32") -> Record:
        where: dict[str, Any] = {"case": case, "cell": cell, "dtype": dtype, "status": "absent"}
        return record("torchrl", message="no such cell", **where)

    timed = [record("torch.nn", 1.0, case=c, cell="lstm") for c in ("odd", "sweep-h-32")]
    absent = [missing("odd", "gru"), missing("sweep-h-32", "gru"), missing("tagger", "gru")]
    text = page(results(*timed, *absent, missing("odd", "lstm")), tmp_path)
    lines = section(text, "Without a time").strip().splitlines()
    assert lines == ["- **torchrl**, absent: no such cell (every case in gru; odd in lstm)"]
    text = page(results(*timed, missing("sweep-h-32", "gru"), missing("odd", "gru")), tmp_path)
    assert "(every case in gru)" in section(text, "Without a time")
    both = [missing("sweep-h-32", cell, "bf16") for cell in ("lstm", "gru")]
    text = page(results(*timed, *both), tmp_path)
    assert "(sweep-h-* in bf16)" in section(text, "Without a time")


def test_a_wrong_peer_has_no_time_on_the_page_either(tmp_path: Path) -> None:
    wrong = record("rnnkit auto", 1.234, status="wrong", message="error 3")
    run = results(record("torch.nn", 2.0), wrong)
    text = page(run, tmp_path)
    assert "1.23" not in text + details(run, tmp_path)
    assert "| ptb-small | lstm | fp32 | **2.00** | wrong |" in text


def test_losses_of_auto_are_listed_with_both_numbers(tmp_path: Path) -> None:
    run = results(
        record("torch.nn", 3.0),
        record("rnnkit auto", 2.5, engine="launch"),
        record("rnnkit data", 1.25),
    )
    losses = section(page(run, tmp_path), "Where auto is not the fastest")
    row = "| ptb-small | lstm | fp32 | train | 2.50 (launch) | 1.25 (rnnkit data) | 2.00× |"
    assert row in losses


def test_no_loss_of_auto_is_a_sentence(tmp_path: Path) -> None:
    run = results(record("torch.nn", 3.0), record("rnnkit auto", 2.5))
    assert "Nowhere" in section(page(run, tmp_path), "Where auto is not the fastest")


def test_columns_stand_in_the_page_only_where_someone_has_a_value(tmp_path: Path) -> None:
    bare = details(results(record("torch.nn", 2.0)), tmp_path)
    assert "peak MiB" not in bare
    assert "floor ÷ time" not in bare
    values: dict[str, Any] = {
        "peak_bytes": 2**21,
        "floor_seconds": 5e-4,
        "error": 0.25,
        "graph_seconds": [1e-3],
    }
    full = details(results(record("torch.nn", 2.0, samples=1, **values)), tmp_path)
    head, _, row = full.rstrip().splitlines()[-3:]
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["peak MiB"] == "2.00"
    assert cells["floor ÷ time"] == "25%"
    assert cells["error ÷ allowed |"] == "0.250 |"
    assert cells["in a CUDA graph, ms"] == "1.00"
    assert cells["p20–p80"] == "2.00–2.00"
    assert cells["µs per step"] == "100"


def test_every_mode_has_a_table_and_pictures_show_training(tmp_path: Path) -> None:
    both = [
        record(peer, time, mode=mode)
        for mode, time in (("inference", 1.0), ("train", 3.0))
        for peer in ("torch.nn", "rnnkit auto")
    ]
    text = page(results(*both), tmp_path)
    assert "[inference.md](inference.md)" in text
    assert "| lstm | fp32 | torch.nn | 1.00 |" in details(results(*both), tmp_path, "inference")
    assert "| lstm | fp32 | torch.nn | 3.00 |" in details(results(*both), tmp_path, "train")
    assert "### Inference: forward without gradients" in text
    assert "### Train: forward and backward" in text
    assert "*fp32, train (forward and backward, all gradients)" in text
    assert "*fp32, inference (forward without gradients)" in page(results(*both[:2]), tmp_path)


def test_captions_name_dtype_mode_and_number_of_samples(tmp_path: Path) -> None:
    others: dict[str, Any] = {"mode": "inference", "samples": 99}
    run = results(
        record("torch.nn", 3.0, samples=11),
        record("rnnkit auto", 2.5, samples=40),
        *(record(peer, 1.0, **others) for peer in ("torch.nn", "rnnkit auto")),
    )
    caption = re.search(r"\n\*fp32, train \(.*\), medians of (.*?) samples", page(run, tmp_path))
    assert caption is not None
    assert caption[1] == "11–40"


def test_constants_of_the_floor_are_legible(tmp_path: Path) -> None:
    floor = {"exchange": {"data": {"32": 1.2e-6, "64": 2e-6}}, "copy": 3.9e12, "ways": [1, 2]}
    text = section(
        page(results(record("torch.nn", 1.0), floor=floor), tmp_path), "Constants of the floor"
    )
    assert "| exchange, data | 32: 1.20 µ · 64: 2.00 µ |" in text
    assert "| copy | 3.90 T |" in text
    assert "Constants" not in page(results(record("torch.nn", 1.0)), tmp_path)


def test_a_run_in_which_nothing_worked_has_a_page(tmp_path: Path) -> None:
    run = results(record("torch.nn", status="failed", message="no GPU"))
    written = report.render(run, tmp_path / "run.json", tmp_path)
    assert [file.name for file in written] == ["README.md", "train.md"]
    assert "no GPU" in written[0].read_text()
    assert "Nobody has a time." in written[1].read_text()


def test_no_page_of_a_full_run_is_longer_than_github_shows(tmp_path: Path) -> None:
    run = gpu_full()
    alone = [replace(r, mode=m) for r in run.records if r.dtype == "bf16" for m in MODES]
    report.render(replace(run, records=alone), tmp_path / "run.json", tmp_path)
    # One dtype of four.
    assert max(file.stat().st_size for file in tmp_path.glob("*.md")) < 512 * 1024 / 4


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123456, "0.0123"), (1.0, "1.00"), (99.96, "100"), (12345.6, "12,346"), (0, "0.00")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert report.number(value) == shown


# Without matplotlib


def test_without_matplotlib_the_page_is_written_and_says_how_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("charts", "report"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}")
        monkeypatch.delattr(benchmarks, name)
    fresh = importlib.import_module("benchmarks.report")
    written = fresh.render(cpu_quick(), tmp_path / "run.json", tmp_path)
    assert [file.name for file in written] == ["README.md", "train.md"]
    assert len(list(tmp_path.iterdir())) == 2
    text = written[0].read_text()
    assert "`rnnkit bench --report run.json`" in text
    assert "![" not in text
    assert "| ptb-small | lstm | fp32 | **" in text


# Pictures


def test_pictures_exist_only_where_data_is(tmp_path: Path) -> None:
    written = report.render(cpu_quick(), tmp_path / "run.json", tmp_path)
    assert [file.name for file in written] == ["README.md", "train.md", "speedup-fp32.png"]
    assert (tmp_path / "speedup-fp32.png").read_bytes().startswith(b"\x89PNG")
    alone = results(record("torch.nn", 1.0))
    for draw in (charts.speedup, charts.sweeps, charts.over_floor, charts.memory):
        assert draw(alone, "fp32", "train") is None
        assert draw(cpu_quick(), "bf16", "train") is None


def test_the_page_shows_every_picture_that_was_written(gpu: Results, tmp_path: Path) -> None:
    page, _, *pictures = report.render(gpu, tmp_path / "run.json", tmp_path)
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
    assert shown == [file.name for file in pictures]
    assert len(shown) == 4


def test_the_number_beside_a_row_is_that_of_auto() -> None:
    run = results(
        *(record("torch.nn", 3.0, case=case) for case in ("odd", "tagger")),
        record("rnnkit auto", 2.0, case="odd"),
        record("rnnkit auto", case="tagger", status="failed", message="no memory"),
        record("loop in PyTorch", 6.0, case="tagger"),
    )
    figure = charts.speedup(run, "fp32", "train")
    assert figure is not None
    right = figure.axes[0].child_axes[0]
    assert [label.get_text() for label in right.get_yticklabels()] == ["1.50×", "failed"]


def test_of_several_engines_the_fastest_on_a_case_is_drawn() -> None:
    run = results(
        record("torch.nn", 3.0), record("rnnkit data", 2.0), record("rnnkit counter", 1.5)
    )
    figure = charts.speedup(run, "fp32", "train")
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rnnkit counter"]


def test_a_sweep_is_drawn_in_microseconds_per_step_and_in_no_other_picture() -> None:
    times = {"sweep-h-64": 1.0, "sweep-h-32": 0.5}
    run = results(*(record("torch.nn", time, case=case) for case, time in times.items()))
    figure = charts.sweeps(run, "fp32", "train")
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [32, 64]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([500 / 64, 1000 / 64])
    assert charts.over_floor(run, "fp32", "train") is None


def test_every_panel_has_its_numbers_where_there_are_three() -> None:
    pair = (("torch.nn", 3.0), ("rnnkit auto", 2.0))
    cells = ("lstm", "gru", "rnn_tanh")
    run = results(*(record(peer, time, cell=cell) for cell in cells for peer, time in pair))
    figure = charts.speedup(run, "fp32", "train")
    assert figure is not None
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.xaxis.get_major_ticks()[0].label1.get_visible()


def test_the_line_of_the_floor_is_not_the_edge_of_the_picture() -> None:
    figure = charts.over_floor(
        results(record("rnnkit auto", 2.0, floor_seconds=1e-3)), "fp32", "train"
    )
    assert figure is not None
    assert figure.axes[0].get_xlim()[0] < 1


def test_whiskers_beyond_zero_are_drawn(tmp_path: Path) -> None:
    # On a logarithmic axis they end where the axis does.
    run = results(
        record("torch.nn", 3.0), record("rnnkit auto", 2.0), record("loop in PyTorch", 30.0)
    )
    run.records[2].seconds = [0.002, 0.06] * 5
    figure = charts.speedup(run, "fp32", "train")
    assert figure is not None
    figure.savefig(tmp_path / "a.png")
    low, high = figure.axes[0].get_xlim()
    assert 0 < low < 3 / 31
    assert high < 3


def test_no_two_peers_look_alike() -> None:
    looks = list(charts.LOOKS.values())
    assert len({marker for _, marker in looks}) == len(looks)


def drawn(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """The texts of a figure as they come out, with their boxes in pixels."""
    figure.draw_without_rendering()

    def texts_of(axis: Axis) -> Iterator[Text]:
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)
        yield axis.label

    def texts(axes: Axes) -> Iterator[Text]:
        yield axes.title
        for axis in (axes.xaxis, axes.yaxis):
            yield from texts_of(axis)
        for child in axes.child_axes:
            yield from texts_of(child.yaxis)

    found = [text for axes in figure.axes for text in texts(axes)]
    for text in found + figure.legends[0].get_texts():
        if text.get_visible() and text.get_text():
            yield text.get_text(), text.get_window_extent()


@pytest.mark.parametrize("name", list(report.CHARTS))
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_labels_lie_inside_the_picture_and_clear_of_each_other(
    name: str, mode: str, gpu: Results
) -> None:
    run = replace(gpu, records=[replace(each, mode=mode) for each in gpu.records])
    figure = getattr(charts, name)(run, "bf16", mode)
    found = list(drawn(figure))
    assert len(found) > 20
    width, height = figure.get_size_inches() * figure.dpi
    for i, (text, box) in enumerate(found):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
        for other, there in found[:i]:
            assert Bbox.intersection(box, there) is None, (text, other)

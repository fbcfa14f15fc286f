"""The command as a user meets it, in a process of its own where that matters.

A process takes seconds to import Lightning: what only reads arguments and prints runs in this one.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.cli import main
from tests.forks import Process

COMMANDS = (
    *("fit", "validate", "test", "configs", "study", "generate", "score", "gradients", "plot"),
    *("translate", "tag", "words", "data", "bench"),
)

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "likes", "tree"]

CONFIG = """\
seed_everything: 0
data:
  class_path: rnnkit.language_modeling.LanguageModelingData
  init_args: {corpus: corpus, batch_size: 4, window: 10, eval_batch_size: 2}
model:
  class_path: rnnkit.language_modeling.LanguageModel
  init_args: {embedding_size: 8, hidden_size: 8, num_layers: 1}
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 5
  num_sanity_val_steps: 0
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/ppl, mode: min, filename: best}
"""


def start(folder, *arguments, kind=Process, **environment):
    return kind(
        [sys.executable, "-m", "rnnkit.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_process(folder, *arguments, **environment):
    """A forked process, or with `kind=subprocess.Popen` one that imports everything itself."""
    process = start(folder, *arguments, **environment)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture
def rnnkit(monkeypatch, capfd):
    def run(folder, *arguments):
        monkeypatch.chdir(folder)
        capfd.readouterr()
        status = main(list(arguments))
        return status, *capfd.readouterr()

    return run


def write_corpus(folder, words=WORDS, lines=100):
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "valid", "test"):
        ids = torch.randint(len(words), (lines, 7), generator=generator).tolist()
        text = "\n".join(" ".join(words[i] for i in line) for line in ids)
        (folder / f"{name}.txt").write_text(text + "\n")


def sentence(errors):
    """The one line that a failed command prints, warnings apart."""
    lines = [line for line in errors.splitlines() if line.startswith("rnnkit")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus, a configuration, and a finished run."""
    folder = tmp_path_factory.mktemp("work")
    write_corpus(folder / "corpus")
    (folder / "tiny.yaml").write_text(CONFIG)
    status, output, errors = run_process(folder, "fit", "-c", "tiny.yaml")
    assert status == 0, errors
    return folder, output


BEST = "runs/tiny/version_0/checkpoints/best.ckpt"


@pytest.mark.process
def test_fit_writes_a_run_named_after_its_configuration(trained):
    folder, output = trained
    run = folder / "runs" / "tiny" / "version_0"
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "ppl.png",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss", "train/ppl", "val/ppl", "val/bits_per_token"} <= set(header.split(","))
    assert "tokens/s" in output
    assert "val/ppl" in output


@pytest.mark.process
def test_the_last_checkpoint_is_the_last_epoch_s_also_where_that_is_worse(trained, rnnkit):
    folder, _ = trained
    # The highest perplexity, that of the first epoch, shall be the best.
    (folder / "worse.yaml").write_text(CONFIG.replace("mode: min", "mode: max"))
    status, _, errors = rnnkit(folder, "fit", "-c", "worse.yaml", "--trainer.max_epochs", "3")
    assert status == 0, errors
    checkpoints = folder / "runs" / "worse" / "version_0" / "checkpoints"
    epochs = {
        name: torch.load(checkpoints / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert epochs["last"] == 2
    assert epochs["best"] == 0


@pytest.mark.process
def test_the_saved_configuration_runs_again_and_goes_on(trained, rnnkit):
    folder, _ = trained
    status, _, errors = rnnkit(
        folder,
        *("fit", "-c", "runs/tiny/version_0/config.yaml", "--trainer.max_epochs", "3"),
        *("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"),
    )
    assert status == 0, errors


@pytest.mark.training
def test_a_profiler_that_is_asked_for_records_the_run(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    profiler = ("--trainer.profiler", "SimpleProfiler", "--trainer.profiler.dirpath", "times")
    name = ("--trainer.profiler.filename", "of")
    assert main(["fit", "-c", "tiny.yaml", "--trainer.max_steps", "2", *profiler, *name]) == 0
    assert "run_training_batch" in (tmp_path / "times" / "fit-of.txt").read_text()


@pytest.mark.process
def test_test_scores_a_checkpoint(trained, rnnkit):
    status, output, errors = rnnkit(trained[0], "test", "-c", "tiny.yaml", "--ckpt_path", BEST)
    assert status == 0, errors
    assert "test/ppl" in output


@pytest.mark.process
def test_generate_writes_the_same_for_the_same_seed(trained, rnnkit):
    arguments = ("generate", "--ckpt", BEST, "--prompt", "the cat", "--length", "8", "--seed")
    first, again, other = (rnnkit(trained[0], *arguments, seed) for seed in ("1", "1", "2"))
    assert first[0] == 0, first[2]
    assert first[1] == again[1] != other[1]
    assert first[1].startswith("the cat ")
    assert set(first[1].split()) <= set(WORDS)


@pytest.mark.process
def test_generate_tells_what_it_does_not_know_and_counts(trained, rnnkit):
    status, output, errors = rnnkit(
        trained[0],
        "generate",
        "--ckpt",
        BEST,
        "--prompt",
        "the zebra",
        "--count",
        "3",
        "--length",
        "1",
    )
    assert status == 0
    assert errors.strip() == "read as <unk>: zebra"
    assert [line[:9] for line in output.splitlines() if line.strip()] == 3 * ["the <unk>"]


def test_help_lists_every_command(rnnkit):
    status, output, _ = rnnkit(".", "--help")
    assert status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in output


@pytest.mark.parametrize(
    "command",
    [
        (),
        *((each,) for each in COMMANDS),
        *(("data", each) for each in ("list", "get", "where")),
        *(("bench", each) for each in ("end-to-end", "output-layers")),
    ],
)
def test_the_help_of_a_command_begins_with_an_example(command, rnnkit):
    status, output, errors = rnnkit(".", *command, "--help")
    assert status == 0, errors
    paragraphs = output.split("\n\n")
    first = paragraphs[1] if paragraphs[0].startswith("usage: ") else paragraphs[0]
    words = " ".join(("rnnkit", *command))
    assert all(line.startswith(words) for line in first.splitlines())


def test_no_command_and_an_unknown_one_list_what_there_is(rnnkit):
    for arguments in ((), ("bogus",)):
        status, _, errors = rnnkit(".", *arguments)
        assert status == 2
        assert f"choose from {', '.join(COMMANDS)}" in sentence(errors)


def test_predict_is_no_command_and_what_does_its_work_is_named(rnnkit):
    assert "predict" not in rnnkit(".", "--help")[1]
    status, _, errors = rnnkit(".", "predict", "-c", "tagging/announcements")
    assert status == 2
    assert "translate, tag, generate and score let a checkpoint work on text" in sentence(errors)


def test_data_is_handed_to_its_own_command(rnnkit):
    status, output, _ = rnnkit(".", "data", "list")
    assert status == 0
    assert "tinyshakespeare" in output


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", "none.yaml"], "none.yaml"),
        (["-c", "tiny.yaml", "--model.init_args.hidden_siz", "3"], "'hidden_siz' is not accepted"),
        (["-c", "tiny.yaml", "--model.init_args.hidden_size", "big"], "Got value: big"),
        (["-c", "tiny.yaml", "--data.init_args.corpus", "nowhere"], "no corpus 'nowhere'"),
        (["-c", "tiny.yaml", "--data.init_args.corpus", "empty"], "test.txt is empty"),
        (["-c", "tiny.yaml", "--data.init_args.corpus", "latin"], "test.txt is no UTF-8"),
        (["-c", "tiny.yaml", "--data.init_args.batch_size", "0"], "1 or more, got 0"),
        (["-c", "tiny.yaml", "--ckpt_path", "cut.ckpt"], "cut.ckpt is damaged or cut off"),
        (["-c", "tiny.yaml", "--ckpt_path", "none.ckpt"], "no checkpoint none.ckpt"),
    ],
)
def test_bad_input_of_fit_ends_in_one_sentence(trained, arguments, expected, rnnkit):
    folder, _ = trained
    for name, content in (("empty", b""), ("latin", b"caf\xe9 \n")):
        (folder / name).mkdir(exist_ok=True)
        for part in ("train", "valid", "test"):
            (folder / name / f"{part}.txt").write_bytes(content)
    whole = (folder / BEST).read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    status, _, errors = rnnkit(folder, "fit", *arguments)
    assert status == 1
    assert expected in sentence(errors)


@pytest.mark.process
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("words", [[*WORDS[:-1], "bush"], [*WORDS, "bush"]])
def test_a_checkpoint_with_another_vocabulary_is_refused(trained, tmp_path, command, words, rnnkit):
    folder, _ = trained
    write_corpus(tmp_path / "other", words)
    status, _, errors = rnnkit(
        folder,
        *(command, "-c", "tiny.yaml", "--ckpt_path", BEST),
        *("--data.init_args.corpus", str(tmp_path / "other")),
    )
    assert status == 1
    assert "vocabulary" in sentence(errors)


@pytest.mark.process
def test_a_truncated_checkpoint_is_told_by_generate(trained):
    folder, _ = trained
    (folder / "short.ckpt").write_bytes((folder / BEST).read_bytes()[:2000])
    status, _, errors = run_process(folder, "generate", "--ckpt", "short.ckpt")
    assert status == 1
    assert "short.ckpt is damaged or cut off (it has 2,000 bytes)" in sentence(errors)


@pytest.mark.process
def test_debug_shows_where_an_error_arose(trained):
    status, _, errors = run_process(trained[0], "generate", "--ckpt", "none.ckpt", RNNKIT_DEBUG="1")
    assert status == 1
    assert "Traceback" in errors


@pytest.mark.process
def test_without_the_extra_the_command_says_what_to_install(tmp_path):
    (tmp_path / "lightning.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'lightning'\", name='lightning')\n"
    )
    status, _, errors = run_process(
        tmp_path, "fit", "-c", "x.yaml", kind=subprocess.Popen, PYTHONPATH=str(tmp_path)
    )
    assert status == 1
    assert "pip install 'rnnkit[train]'" in sentence(errors)


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_keeps_the_last_state_and_says_how_to_go_on(number, expected, trained):
    folder, _ = trained
    (folder / "long.yaml").write_text(CONFIG.replace("max_epochs: 2", "max_epochs: 100000"))
    process = start(folder, "fit", "-c", "long.yaml")
    runs = folder / "runs" / "long"
    before = len(list(runs.glob("*")))
    deadline = time.monotonic() + 60
    while not (runs / f"version_{before}" / "metrics.csv").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "Traceback" not in errors
    command = next(line for line in errors.splitlines() if line.startswith("  rnnkit fit"))
    *resume, path = command.split()[1:]
    step = int(errors.split("stopped after step ")[1].split(",")[0])
    assert torch.load(folder / path, weights_only=True)["global_step"] == step
    status, _, errors = run_process(
        folder, *resume, path, "--trainer.max_epochs", "-1", "--trainer.max_steps", str(step + 3)
    )
    assert status == 0, errors


class EndAfter(Callback):
    """SIGTERM by a queue or a shutdown; a launcher may send another one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.training
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_ends_a_run_after_its_step_or_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    checkpoints = Path("runs", "tiny", "version_0", "checkpoints")
    steps = torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] // 2
    for run, step in enumerate((3, steps), start=1):  # in an epoch, at the end of one
        end = ("--trainer.callbacks+", f"{__name__}.EndAfter", "--trainer.callbacks.steps")
        status = main(["fit", "-c", "tiny.yaml", *end, str(step)])
        assert status == 128 + signal.SIGTERM
        path = Path("runs", "tiny", f"version_{run}", "checkpoints", "last.ckpt")
        assert torch.load(path, weights_only=True)["global_step"] == step
        assert str(path) in capsys.readouterr().err
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


@pytest.mark.training
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_run_whose_reader_is_gone_saves_all_the_same(tmp_path, monkeypatch):
    """Ctrl-C in `rnnkit fit 2>&1 | tee log` ends `tee` as well."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    reading, writing = os.pipe()
    os.close(reading)
    end = ("--trainer.callbacks+", f"{__name__}.EndAfter", "--trainer.callbacks.steps", "3")
    with os.fdopen(writing, "w", buffering=1) as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        status = main(["fit", "-c", "tiny.yaml", *end])
        os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())
    assert status == 128 + signal.SIGTERM
    path = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 3


def test_what_runs_out_of_memory_says_so(monkeypatch, capsys):
    def shortage(arguments):
        raise RuntimeError("DefaultCPUAllocator: you tried\nto allocate 8 bytes")

    monkeypatch.setattr("rnnkit.tagging.tag.main", shortage)
    assert main(["tag"]) == 1
    assert "tried to allocate 8 bytes; lower the batch" in sentence(capsys.readouterr().err)

    def nothing_said(arguments):
        raise MemoryError

    monkeypatch.setattr("rnnkit.tagging.tag.main", nothing_said)
    assert main(["tag"]) == 1
    assert capsys.readouterr().err == "rnnkit tag: MemoryError\n"


def test_a_warning_shows_no_control():
    assert main(["data", "where"]) == 0
    shown = warnings.formatwarning("folder x\x1b[2Jy exists", UserWarning, "f.py", 1)
    assert r"folder x\x1b[2Jy exists" in shown


def test_two_callbacks_that_cannot_be_told_apart_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    twice = ("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint") * 2
    assert main(["fit", "-c", "tiny.yaml", *twice]) == 1
    assert "more than one stateful callback" in sentence(capsys.readouterr().err)


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rnnkit {version('rnnkit')}\n"

from pathlib import Path

import pytest
import torch

from rnnkit.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "valid", "test"):
        ids = torch.randint(10, (500,), generator=generator).tolist()
        (folder / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    return str(folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_begins_with_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    before = " -c configs/lm/ptb_awd_lstm.yaml" if path.parent.name == "devices" else ""
    assert first == f"# rnnkit fit{before} -c {path.relative_to(ROOT).as_posix()}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_value_of_a_configuration_is_explained(path):
    before = ""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if value.strip() and not line.lstrip().startswith("#") and "class_path" not in key:
            # A comment beside it, or on the line above.
            assert "  # " in line or before.lstrip().startswith("#"), line
        before = line


@pytest.mark.training
@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "lm").iterdir()), ids=lambda p: p.stem)
def test_a_language_model_trains_as_configured(path, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(
        [
            *("fit", "-c", str(path), "--data.init_args.corpus", corpus),
            *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2"),
            *("--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"),
        ]
    )
    assert status == 0
    assert (tmp_path / "runs" / path.stem / "version_0" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.training
@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "translation").iterdir()), ids=lambda p: p.stem
)
def test_a_translation_model_trains_as_configured(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = [f"{language} {' '.join('abc'[: 1 + i % 3])}" for i in range(40)]
            (folder / f"{name}.{language}").write_text("\n".join(lines))
    arguments = [
        *("fit", "-c", str(path), "--data.init_args.corpus", str(folder)),
        *("--data.init_args.source", "de", "--data.init_args.target", "en"),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2"),
        *("--trainer.val_check_interval", "1"),
    ]
    assert main(arguments) == 0
    (run,) = (tmp_path / "runs" / path.stem).iterdir()
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert (run / "translations.txt").is_file()


@pytest.mark.training
@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "tagging").iterdir()), ids=lambda p: p.stem
)
def test_a_tagger_trains_as_configured(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tagged"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        blocks = [f"{'the O' if i % 2 else 'a O'}\nAda B-PER\nLovelace I-PER" for i in range(40)]
        (folder / f"{name}.txt").write_text("\n\n".join(blocks))
    arguments = [
        *("fit", "-c", str(path), "--data.init_args.corpus", str(folder)),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", "2"),
    ]
    assert main(arguments) == 0
    (run,) = (tmp_path / "runs" / path.stem).iterdir()
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert "val/f1" in (run / "metrics.csv").read_text()


@pytest.mark.training
def test_the_precision_of_products_is_set(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    common = [
        *("fit", "-c", str(ROOT / "configs/lm/ptb_zaremba_small.yaml")),
        *("--data.init_args.corpus", corpus, "--trainer.accelerator", "cpu"),
        *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"),
    ]
    assert main(common) == 0
    assert main([*common, "--float32_matmul_precision", "medium"]) == 0
    assert seen == ["highest", "medium"]
    assert main([*common, "--float32_matmul_precision", "low"]) == 1


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_untrained_model_is_not_scored(command, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs/lm/ptb_zaremba_small.yaml"
    assert main([command, "-c", str(path), "--data.init_args.corpus", corpus]) == 1
    assert "--ckpt_path is missing: this would score an untrained model" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells that there is no GPU")
def test_what_shards_over_gpus_says_that_there_is_none(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    awd, fsdp = (str(ROOT / "configs" / name) for name in ("lm/ptb_awd_lstm", "devices/fsdp"))
    arguments = ["fit", "-c", f"{awd}.yaml", "-c", f"{fsdp}.yaml"]
    assert main([*arguments, "--data.init_args.corpus", corpus]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "gpu" in told.lower()


@pytest.mark.training
def test_a_run_is_named_after_the_first_configuration(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("devices.yaml").write_text("trainer:\n  accelerator: cpu\n  max_steps: 1\n")
    first = str(ROOT / "configs" / "lm" / "ptb_zaremba_small.yaml")
    arguments = ["fit", "-c", first, "-c", "devices.yaml", "--data.init_args.corpus", corpus]
    assert main(arguments) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["ptb_zaremba_small"]

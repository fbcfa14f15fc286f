"""Configurations, checkpoints and command lines that mean harm: refused, in one safe sentence."""

import io
import os
import sys
import time

import pytest
import torch

from rnnkit.cli import main
from rnnkit.screen.terminal import MOST_TOLD, UNSAFE
from rnnkit.training.configurations import MOST_LEVELS, ConfigurationError, check_names, check_text
from tests.small_checkpoints import make_checkpoint

pytestmark = pytest.mark.training

NASTY = "a\u202eb\x1b[2Jc"

MODEL = "rnnkit.language_modeling.LanguageModel\n"  # the data's path begins likewise
CONFIG = """\
data:
  class_path: rnnkit.language_modeling.LanguageModelingData
  init_args: {corpus: corpus, batch_size: 4, window: 10, eval_batch_size: 2}
model:
  class_path: rnnkit.language_modeling.LanguageModel
  init_args: {embedding_size: 8, hidden_size: 8, num_layers: 1MODEL}
trainer:
  fast_dev_run: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
"""


def in_model(argument):
    return CONFIG.replace("MODEL", f", {argument}")


def in_trainer(argument):
    return f"{plain()}  {argument}\n"


def plain():
    return CONFIG.replace("MODEL", "")


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a corpus, a checkpoint of a language model, a module and a harmful checkpoint.

    What is harmful there would make the file `harm`.
    """
    folder = tmp_path_factory.mktemp("hostile")
    make_checkpoint(folder, "word", "the cat sees a dog\n" * 40, "the dog\n" * 10)
    (folder / "planted.py").write_text(
        "def touch(*_, **__):\n    open('harm', 'w').close()\n"
        "class Plain:\n    def __init__(self):\n        touch()\n"
        "class Broken:\n    pass\n"
    )
    (folder / "broken_module.py").write_text("1 / 0\n")
    torch.save({"state_dict": Harmful()}, folder / "bomb.ckpt")
    return folder


@pytest.fixture
def rnnkit(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def run(*arguments, text=b""):
        monkeypatch.setattr(sys, "stdin", type("Input", (), {"buffer": io.BytesIO(text)})())
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        said = capsys.readouterr()
        assert not (folder / "harm").exists()
        assert not UNSAFE.search(said.err.translate({10: " ", 9: " "})), said.err
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run


@pytest.fixture
def fit(folder, rnnkit):
    def run(text, *arguments):
        (folder / "hostile.yaml").write_text(text, encoding="utf-8")
        status, _, errors = rnnkit("fit", "-c", "hostile.yaml", *arguments)
        lines = [line for line in errors.splitlines() if line.startswith("rnnkit")]
        return status, lines

    return run


def refuses(fit, text, expected, *arguments):
    status, lines = fit(text, *arguments)
    assert status == 1
    (line,) = lines
    assert expected in line
    assert len(line) < MOST_TOLD + 200


def test_the_configuration_without_harm_runs(fit):
    assert fit(plain()) == (0, [])


OPTIMIZER = "optimizer: {class_path: %s, init_args: {%s}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (plain() + "x: !!python/object/apply:os.system ['touch harm']\n", "python/object/apply"),
        (in_model("dropout: !!python/name:os.system x"), "python/name"),
        (in_model(OPTIMIZER % ("os.system", "command: touch harm")), "Python's own library"),
        (in_model(OPTIMIZER % ("subprocess.Popen", "args: [touch, harm]")), "own library"),
        (in_model(OPTIMIZER % ("builtins.eval", "source: 1")), "own library"),
        (in_model(OPTIMIZER % ("torch.load", "f: bomb.ckpt, weights_only: false")), "may run"),
        (in_model(OPTIMIZER % ("torch.os.system", "command: touch harm")), "no class"),
        (in_model("optimizer: os.system"), "not allowed"),
        (in_model("optimizer: torch.os.system"), "not allowed"),
        (in_model("optimizer: planted.touch"), "planted.touch"),
        (in_model(OPTIMIZER % ("planted.touch", "")), "planted.touch is no class"),
        (in_model(OPTIMIZER % ("planted.Plain", "")), "subclass of <class 'Optimizer'>"),
        (in_model("lr_scheduler: {class_path: planted.touch}"), "planted.touch is no class"),
        (in_trainer("callbacks: [{class_path: subprocess.Popen}]"), "own library"),
        (in_trainer("callbacks: [{class_path: planted.Plain}]"), "planted.Plain"),
        (in_trainer("callbacks: [{class_path: planted.touch}]"), "no class"),
        (in_trainer("callbacks: [planted.touch]"), "planted.touch"),
        (in_trainer("plugins: [{class_path: planted.Plain}]"), "planted.Plain"),
        (in_trainer("strategy: {class_path: planted.Plain}"), "planted.Plain"),
        (in_trainer("profiler: {class_path: planted.Plain}"), "planted.Plain"),
        (
            in_trainer(
                "callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
                "init_args: {on_fit_start: planted.touch}}]"
            ),
            "LambdaCallback",
        ),
        (plain().replace(MODEL, "planted.Plain\n"), "not correspond to a subclass"),
        (plain().replace(MODEL, "broken_module.Model\n"), "ZeroDivisionError"),
        (plain().replace(MODEL, "nowhere.Model\n"), "No module named 'nowhere'"),
        (
            plain().replace(MODEL, MODEL.strip() + ".load_from_checkpoint\n"),
            "no class",
        ),
        (plain() + "ckpt_path: bomb.ckpt\nweights_only: false\n", "would run code"),
        (plain() + "ckpt_path: bomb.ckpt\n", "more than tensors and plain data"),
        (plain().replace("model:", "model: planted.touch\nmodel.x:"), "name it as class_path"),
        (in_model("optimizer: {class_path: torch.optim.SGD, dict_kwargs: {x: 1}}"), "takes no x"),
    ],
)
def test_a_configuration_runs_nothing_but_classes_of_the_expected_kind(fit, text, expected):
    refuses(fit, text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("&a\nmodel: *a\n", "line 2: a holds itself"),
        (in_trainer("callbacks: &a [*a]"), "a holds itself"),
        (in_model("dropout: '&a [*a]'"), "a holds itself"),
        ("data: " + "[" * 900 + "]" * 900, f"expected {MOST_LEVELS} or fewer"),
        ("data: " + "[" * 3000 + "]" * 3000, "line 1"),  # where PyYAML may refuse it before us
        ("data: " + "{a: " * 1000 + "}" * 1000, f"expected {MOST_LEVELS} or fewer"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 30)),
            "more than 100,000 values",
        ),
        (plain() + "seed_everything: 1\nseed_everything: 2\n", "for the second time"),
        ("a: [1\nb: }", "while parsing"),
        ("1: 2\n", "Key must be a string"),
        ("? [1]\n: 2\n", "unhashable key"),
        ("42\n", "Unexpected config"),
        ("", "Unexpected config"),
        ("a: 1\n---\nb: 2\n", "single document"),
        (plain() + f"seed_everything: {'9' * 5000}\n", "4300 digits"),
        ('"a\\u202eb\\e[2Jc": 1\n', r"a\u202eb\x1b[2Jc"),
        (plain().replace(MODEL, f'"{NASTY[:3]}.X"\n'), r"a\u202eb.X"),
        (plain().replace("corpus: corpus", 'corpus: "a\\0b"'), r"a\x00b"),
        (plain().replace("corpus: corpus", f"corpus: {'c' * 5000}"), "characters ..."),
        (plain().replace("corpus: corpus", 'corpus: "\\ud800"'), "invalid Unicode"),
    ],
    ids=lambda value: value[:20],
)
def test_a_configuration_that_is_none_is_told(fit, text, expected):
    started = time.perf_counter()
    refuses(fit, text, expected)
    assert time.perf_counter() - started < 20


def test_what_yaml_may_hold_stays():
    check_text("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\nc: [*a, *a]\n")
    check_text("- {a: 1}\n- {a: 1}\n")
    check_text("? [1]\n: 1\n? [1]\n: 2\n")  # who reads it refuses such keys
    check_names({"class_path": "SGD", "weights_only": None})
    check_names({"class_path": "torch.optim.SGD", "dict_kwargs": {"lr": 1}})
    check_names(["*", "* *: *", "a*b", "*foo", "- *b", "a & b"])
    check_names([{"names": {"encoder.weight": 1, "encoder": 2}}])
    check_names({"names": {"layer": "rnn", "layer.weight": "rnn.weight"}})


def test_many_keys_are_read_in_time():
    started = time.perf_counter()
    check_text("".join(f"k{i}: 1\n" for i in range(40_000)))
    assert time.perf_counter() - started < 20


def test_a_class_of_pythons_own_under_another_name_is_refused():
    with pytest.raises(ConfigurationError, match="Python's own library, collections"):
        check_names({"class_path": "torch.nn.modules.container.OrderedDict"})


@pytest.mark.parametrize("path", [".", "/dev/zero", "http://127.0.0.1:9/x.yaml", "word.ckpt"])
def test_what_is_no_file_of_text_is_no_configuration(rnnkit, path):
    for arguments in (("fit", "-c", path), ("fit", "--model", path)):
        status, _, errors = rnnkit(*arguments)
        assert status == 1
        assert errors.startswith("rnnkit fit: ")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_harmful_checkpoint_is_refused_by_training(folder, rnnkit, command):
    (folder / "plain.yaml").write_text(plain())
    status, _, errors = rnnkit(command, "-c", "plain.yaml", "--ckpt_path", "bomb.ckpt")
    assert status == 1
    assert "more than tensors and plain data" in errors


@pytest.mark.parametrize("command", ["generate", "score", "tag", "translate"])
def test_a_harmful_checkpoint_is_refused_by_what_uses_one(rnnkit, command):
    more = ["planted.py"] if command == "score" else []
    status, _, errors = rnnkit(command, "--ckpt", "bomb.ckpt", *more, text=b"a\n")
    assert status == 1
    assert "more than tensors and plain data" in errors


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": 3},
        {"state_dict": {}},
        {"state_dict": {"embedding.weight": [1]}},
        {"hyper_parameters": [1]},
        {"hyper_parameters": {}},
        {"hyper_parameters": {NASTY: 1}},
        {"hyper_parameters": {"vocabulary_size": "x"}},
        {"LanguageModelingData": 3},
        {"LanguageModelingData": {}},
        {"LanguageModelingData": {"vocabulary": 3, "level": "word"}},
        {"LanguageModelingData": {"vocabulary": list(range(8)), "level": "word"}},
        {"LanguageModelingData": {"vocabulary": ["a"], "level": "word"}},
        {"LanguageModelingData": {"vocabulary": "abcdefg", "level": "word"}},
        {"LanguageModelingData": {"level": "line"}},
        {"LanguageModelingData": {NASTY: 1}},
    ],
)
def test_a_checkpoint_of_plain_data_that_is_not_ours_is_told(folder, rnnkit, change):
    content = torch.load(folder / "word.ckpt", weights_only=True)
    for name, part in change.items():
        added_to = isinstance(part, dict) and part  # an empty one takes the place of what there is
        content[name] = {**content[name], **part} if added_to else part
    torch.save(content, folder / "odd.ckpt")
    status, _, errors = rnnkit("generate", "--ckpt", "odd.ckpt")
    assert status == 1
    assert errors.startswith("rnnkit generate: odd.ckpt ")


@pytest.mark.parametrize(
    "arguments",
    [
        [NASTY],
        *(
            [command, f"--{NASTY}"]
            for command in ("fit", "generate", "score", "plot", "study", "bench")
        ),
        *([command, f"--{NASTY}"] for command in ("tag", "translate", "data", "test")),
        *([command, "--ckpt", NASTY] for command in ("generate", "tag", "translate")),
        ["score", NASTY, "--ckpt", "word.ckpt"],
        ["score", "--corpus", NASTY, "--ckpt", "word.ckpt"],
        ["plot", NASTY],
        ["plot", "corpus", "--metric", NASTY],
        ["data", "get", NASTY],
        ["data", "where", NASTY],
        ["study", NASTY],
        ["study", "ptb-small", "--runs", NASTY],
        ["study", "ptb-small", "--configs", NASTY],
        ["fit", "-c", NASTY],
        ["fit", "--model", NASTY],
        ["tag", "--ckpt", "word.ckpt", "--device", NASTY],
        ["generate", "--ckpt", "word.ckpt", "--prompt", NASTY, "--length", NASTY],
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_no_error_repeats_what_acts_on_a_terminal(rnnkit, arguments):
    status, _, errors = rnnkit(*arguments)
    assert status in (1, 2)
    assert errors


def test_what_is_not_known_is_told_safely(folder, rnnkit):
    status, _, errors = rnnkit("generate", "--ckpt", "word.ckpt", "--prompt", f"the {NASTY}")
    assert status == 0
    assert "\\u202e" in errors
    (folder / "text.txt").write_text(f"the {NASTY}\n")
    status, _, errors = rnnkit("score", "text.txt", "--ckpt", "word.ckpt")
    assert status == 0
    assert "\\u202e" in errors


def test_a_picture_of_runs_with_unsafe_names_is_told_safely(folder, rnnkit):
    run = folder / f"run{NASTY}" / "version_0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,val/ppl\n1,2\n2,1\n")
    status, output, errors = rnnkit("plot", run, "--out", f"{NASTY}.png")
    assert status == 0, errors
    assert "\\x1b" in output
    assert not UNSAFE.search(output.replace("\n", ""))


def test_a_data_folder_is_printed_exactly_to_a_pipe_only(folder, rnnkit, monkeypatch):
    place = folder / NASTY
    (place / "sms_spam").mkdir(parents=True)
    path = place / "sms_spam" / "SMSSpamCollection"
    path.write_text("x")
    monkeypatch.setenv("RNNKIT_DATA_DIR", str(place))
    assert rnnkit("data", "where", "sms_spam")[1] == f"{path}\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["data", "where", "sms_spam"]) == 0
    assert not UNSAFE.search(terminal.getvalue().replace("\n", ""))
    assert "\\u202e" in terminal.getvalue()

"""`rnnkit tag`: every line is answered, in order, whatever comes in."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities

from rnnkit.cli import main
from rnnkit.data.schemes import entities
from rnnkit.language_modeling.task import LanguageModel
from rnnkit.tagging.corpora import read_tagged
from rnnkit.tagging.tag import EntityTagger
from rnnkit.tagging.tokens import places_between_blanks, tokenize
from tests.forks import Process

pytestmark = pytest.mark.training

CONFIG = """\
seed_everything: 0
data:
  class_path: rnnkit.tagging.TaggingData
  init_args: {corpus: corpus, batch_size: 8}
model:
  class_path: rnnkit.tagging.Tagger
  init_args:
    embedding_size: 16
    character_size: 8
    hidden_size: 16
    dropout: 0.1
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.02}}
trainer:
  max_epochs: 12
  check_val_every_n_epoch: 12
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_progress_bar: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/f1, mode: max, filename: best}
"""

NAMES = [("Ada", "PER"), ("Alan Turing", "PER"), ("Paris", "LOC"), ("New York City", "LOC")]


class Input:
    """Standard input of these bytes."""

    def __init__(self, text):
        self.buffer = io.BytesIO(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that the command line trained."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "corpus").mkdir()
    made = []
    for i, word in enumerate(["the", "a", "tree", "sees", "hears", "in", "under", "it"] * 8):
        (name, kind), (other, sort) = NAMES[i % 4], NAMES[(i // 4 + i) % 4]
        rows = [f"{word} O"] * (i % 3)
        for text, type_ in ((name, kind), (None, None), (other, sort)):
            if text is None:
                rows.append("and O")
                continue
            first, *rest = text.split()
            rows += [f"{first} B-{type_}", *(f"{part} I-{type_}" for part in rest)]
        made.append("\n".join(rows))
    for name in ("train", "valid", "test"):
        (folder / "corpus" / f"{name}.txt").write_text("\n\n".join(made) + "\n")
    (folder / "names.yaml").write_text(CONFIG)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "-c", "names.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def checkpoint(run):
    return str(run / "runs" / "names" / "version_0" / "checkpoints" / "best.ckpt")


@pytest.fixture
def tag(checkpoint, monkeypatch, capsys):
    def call(text, *arguments, ckpt=checkpoint):
        monkeypatch.setattr(sys, "stdin", Input(text))
        capsys.readouterr()
        status = main(["tag", "--ckpt", str(ckpt), *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def blocks(output):
    """Lines of each sentence in conll's form; a blank line ends each."""
    assert output == "" or output.endswith("\n")
    found, block = [], []
    for line in output.split("\n")[:-1]:
        if line:
            block.append(line)
        else:
            found.append(block)
            block = []
    assert not block
    return found


def test_test_prints_conllevals_table_and_draws_the_confusion(run, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(run)
    assert main(["test", "-c", "names.yaml", "--ckpt_path", checkpoint]) == 0
    said = capsys.readouterr().out
    assert "with 128 phrases; found: 128 phrases; correct: 128." in said
    assert "accuracy: 100.00%; precision: 100.00%; recall: 100.00%; FB1: 100.00" in said
    assert "              LOC: precision: 100.00%" in said
    (picture,) = run.rglob("confusion.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture.relative_to(run)) in said


def test_entities_are_found_in_text(tag):
    status, output, said = tag(b"Ada and New York City.\n", "--format", "conll")
    assert (status, said) == (0, "")
    (rows,) = blocks(output)
    rows = [row.split("\t") for row in rows]
    assert rows == [
        ["Ada", "B-PER"], ["and", "O"], ["New", "B-LOC"], ["York", "I-LOC"], ["City", "I-LOC"],
        [".", "O"],
    ]  # fmt: skip


def test_confidences_are_a_column_before_the_tags(tag):
    text = b"Ada and New York City.\n"
    status, output, said = tag(text, "--format", "conll", "--confidence")
    assert (status, said) == (0, "")
    (rows,) = blocks(output)
    words, sure, tags = zip(*(row.split("\t") for row in rows), strict=True)
    assert words == ("Ada", "and", "New", "York", "City", ".")
    assert tags == ("B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O")
    assert sure[1] == sure[5] == "_"
    assert sure[2] == sure[3] == sure[4]  # one entity, one confidence
    assert all(0.5 < float(value) <= 1 for value in sure if value != "_")
    status, _, said = tag(text, "--format", "json", "--confidence")
    assert status == 1
    assert "--confidence is a column of --format conll, got json" in said


TAGS = {
    "bio": "B-PER O B-LOC I-LOC I-LOC",
    "IOB1": "I-PER O I-LOC I-LOC I-LOC",
    "bilou": "U-PER O B-LOC I-LOC L-LOC",
    "bioes": "S-PER O B-LOC I-LOC E-LOC",
}


@pytest.mark.parametrize("scheme", TAGS)
def test_tags_are_written_in_the_scheme_that_is_asked_for(tag, scheme):
    text = b"Ada and New York City\n"
    _, output, _ = tag(text, "--format", "conll", "--scheme", scheme)
    assert [row.split("\t")[1] for row in blocks(output)[0]] == TAGS[scheme].split()
    _, output, _ = tag(text, "--format", "json", "--scheme", scheme)
    assert json.loads(output)["tags"] == TAGS[scheme].split()


@pytest.mark.parametrize("more", [[], ["--confidence"], ["--scheme", "bilou"]])
def test_what_is_written_is_read_again_with_the_same_entities(tag, tmp_path, more):
    lines = ["Ada and New\u00a0York", "", "# Paris", "#Ada in New York City", "it sees Alan Turing"]
    text = "\n".join(lines).encode()
    for option in ([], ["--tokenized"]):
        _, output, _ = tag(text, "--format", "conll", *option, *more)
        for name in ("train", "valid", "test"):
            (tmp_path / f"{name}.conll").write_text(output)
        again = read_tagged(str(tmp_path), "BIO").train
        _, output, _ = tag(text, "--format", "json", *option)
        written = [json.loads(line) for line in output.splitlines()]
        written = [line for line in written if line["tokens"]]
        assert [sentence.words for sentence in again] == [line["tokens"] for line in written]
        assert [sentence.tags for sentence in again] == [line["tags"] for line in written]
        assert sum(len(line["entities"]) for line in written) >= 3


def test_seqeval_counts_the_entities_that_are_written(tag):
    text = b"Ada and New York City\nParis and Alan Turing\n"
    _, output, _ = tag(text, "--format", "conll")
    tags = [[row.split("\t")[-1] for row in rows] for rows in blocks(output)]
    found = [(kind, start, end + 1) for kind, start, end in get_entities(tags[0])]
    assert found == [("PER", 0, 1), ("LOC", 2, 5)]
    found = [(kind, start, end + 1) for kind, start, end in get_entities(tags[1])]
    assert found == [("LOC", 0, 1), ("PER", 2, 4)]


def test_json_has_tokens_tags_and_entities(tag):
    status, output, _ = tag(b"Ada and  New York City\n\n", "--format", "json")
    assert status == 0
    first, second = (json.loads(line) for line in output.splitlines())
    assert second == {"text": "", "tokens": [], "tags": [], "entities": []}
    assert first["text"] == "Ada and  New York City"
    assert first["tokens"] == ["Ada", "and", "New", "York", "City"]
    assert first["tags"] == ["B-PER", "O", "B-LOC", "I-LOC", "I-LOC"]
    confidences = [entity.pop("confidence") for entity in first["entities"]]
    assert first["entities"] == [
        {"type": "PER", "text": "Ada", "start": 0, "end": 1, "start_char": 0, "end_char": 3},
        {
            "type": "LOC", "text": "New York City", "start": 2, "end": 5, "start_char": 9,
            "end_char": 22,
        },
    ]  # fmt: skip
    assert all(0.5 < confidence <= 1 for confidence in confidences)


def test_spacys_form_has_tokens_and_entities_by_their_characters(tag):
    _, output, _ = tag("Zoë, Ada  and\u00a0Paris \n".encode(), "--format", "spacy")
    found = json.loads(output)
    text = found.pop("text")
    assert text == "Zoë, Ada  and\u00a0Paris "
    # spaCy takes one blank behind a token for a part of it, and more for a token (Doc.from_json).
    tokens = [text[each["start"] : each["end"]] for each in found["tokens"]]
    assert tokens == ["Zoë", ",", "Ada", " ", "and", "\u00a0", "Paris"]
    assert [each["id"] for each in found["tokens"]] == list(range(7))
    ends = {text[each["start"] : each["end"]]: each["label"] for each in found["ents"]}
    assert ends.items() >= {"Ada": "PER", "Paris": "LOC"}.items()


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A checkpoint of a model that gives each word a label."""
    folder = tmp_path_factory.mktemp("labels")
    text = "\n\n".join(["the D\ndog N\nruns V", "dogs N\nrun V", "a D\ncat N\nsees V\nit P"] * 8)
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text(text)
    config = CONFIG.replace("corpus: corpus", f"corpus: {folder}").replace("val/f1", "val/accuracy")
    (folder / "labels.yaml").write_text(config)
    runs = ["--trainer.default_root_dir", str(folder / "runs")]
    assert main(["fit", "-c", str(folder / "labels.yaml"), *runs]) == 0
    (path,) = folder.rglob("best.ckpt")
    return path


def test_labels_are_written_for_each_word(tag, labels, monkeypatch):
    text = b"the dog  sees\n\n"
    _, output, said = tag(text, "--format", "conll", ckpt=labels)
    assert (output, said) == ("the\tD\ndog\tN\nsees\tV\n\n\n", "")
    _, output, _ = tag(text, "--format", "conll", "--confidence", ckpt=labels)
    sure = [float(row.split("\t")[1]) for row in blocks(output)[0]]
    assert all(0.25 < value <= 1 for value in sure)
    _, output, _ = tag(text, "--format", "json", ckpt=labels)
    first, second = map(json.loads, output.splitlines())
    assert (first["tokens"], first["tags"]) == (["the", "dog", "sees"], ["D", "N", "V"])
    assert first["confidences"] == pytest.approx(sure, abs=1e-4)
    assert "entities" not in first
    assert second == {"text": "", "tokens": [], "tags": [], "confidences": []}
    _, output, _ = tag(text, "--format", "spacy", ckpt=labels)
    tokens = json.loads(output.splitlines()[0])["tokens"]
    assert [each["tag"] for each in tokens] == ["D", "N", "", "V"]  # the second blank is a token
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    _, output, _ = tag(text, "--format", "colour", ckpt=labels)
    assert output.splitlines()[0].split() == ["the", "D", "dog", "N", "sees", "V"]
    status, _, said = tag(text, "--scheme", "bio", ckpt=labels)
    assert (status, "--scheme is for entities" in said) == (1, True)


def test_colours_are_written_where_they_are_asked_for(tag, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    status, output, _ = tag(b"Ada and Paris\n\nin\n", "--format", "colour")
    assert status == 0
    first, second, third = output.splitlines()
    assert "\x1b[" in first
    plain = "".join(part.partition("m")[2] for part in f"\x1b[m{first}".split("\x1b["))
    assert plain.replace("100", "99").split() == ["Ada", "PER", "99%", "and", "Paris", "LOC", "99%"]
    assert (second, third) == ("", "in")


LINES = [
    b"Ada and Paris",
    b"",
    b"  \t ",
    b"qwertz uiop 1990",
    b"in \xff\xfe Paris",
    b"x" * 10_000,
    b"Paris " * 300,
    "東京 hears Zoë\u200cs café".encode(),
    b"\x1b[31mred\x1b]0;t\x07 and \xc2\x9b2J \xe2\x80\xaeAda\x00",
    b"New York City",
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("tokenized", [True, False])
def test_every_line_has_its_answer_in_order_whatever_the_batch_size(tag, end, tokenized):
    text = end.join(LINES)  # the last line needs no end
    found = {}
    for size in ("1", "2", "64"):
        arguments = ["--format", "json", "--batch-size", size, *["--tokenized"] * tokenized]
        status, output, said = tag(text, *arguments)
        assert status == 0
        assert "line 5 is no UTF-8" in said
        found[size] = [json.loads(line) for line in output.splitlines()]
        assert len(found[size]) == len(LINES)
    for one, two, many, line in zip(*found.values(), LINES, strict=True):
        text = line.decode("utf-8", "replace")
        words = re.findall("[^ \t]+", text) if tokenized else tokenize(text)
        assert one["tokens"] == words
        assert one["tags"] == two["tags"] == many["tags"]
        assert len(one["tags"]) == len(words)
        spans = [(each["type"], each["start"], each["end"]) for each in one["entities"]]
        assert spans == entities(one["tags"], "BIO")
        for other in (two, many):
            for a, b in zip(one["entities"], other["entities"], strict=True):
                assert a.pop("confidence") == pytest.approx(b["confidence"], abs=2e-4)
                assert a == {key: value for key, value in b.items() if key != "confidence"}
                a["confidence"] = b["confidence"]
                assert 0 <= a["confidence"] <= 1
    assert [each["type"] for each in found["1"][0]["entities"]] == ["PER", "LOC"]
    assert [each["text"] for each in found["1"][-1]["entities"]] == ["New York City"]


def test_lines_of_similar_length_share_a_batch(checkpoint, monkeypatch):
    tagger = EntityTagger.from_checkpoint(checkpoint)
    seen = []
    whole = EntityTagger.tag

    def watched(self, sentences):
        seen.append([len(words) for words in sentences])
        return whole(self, sentences)

    monkeypatch.setattr(EntityTagger, "tag", watched)
    lines = ["it " * length for length in (1, 9, 2, 8, 3, 7)]
    found = list(tagger.tag_lines(lines, places_between_blanks, batch_size=2))
    assert [len(line.words) for line in found] == [1, 9, 2, 8, 3, 7]
    assert seen == [[9, 8], [7, 3], [2, 1]]


UNSAFE = {chr(i) for i in [*range(9), *range(11, 32), *range(127, 160)]} | set(
    "\u2028\u2029\u202a\u202e\u2066\u2069"
)


@pytest.mark.parametrize("shown", ["conll", "json", "colour"])
@pytest.mark.parametrize("tokenized", [True, False])
def test_what_would_move_the_cursor_is_printed_safely(tag, monkeypatch, shown, tokenized):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    text = "Ada \x1b[31mred \x9b2J\x07 \u202eabc\u2066 ok\x00 \x7f Zoë\u200cs and Paris"
    _, output, _ = tag(text.encode() + b"\n", "--format", shown, *["--tokenized"] * tokenized)
    safe = output.replace("\t", "")
    assert not UNSAFE & set(safe)
    assert "Paris" in safe
    if shown == "json":  # which loses nothing
        assert json.loads(output)["text"] == text
    else:  # U+202E, before a word, is no token
        assert safe.count("\ufffd") == 7 - (shown == "conll" and not tokenized)
    assert "Zoë\u200cs" in safe  # what keeps letters apart is left alone


def test_tokenized_text_is_cut_at_blanks_only(tag):
    status, output, _ = tag(b"Ada's U.S.-trip,  (Paris)\n", "--tokenized")
    assert status == 0
    (rows,) = blocks(output)
    assert [row.split("\t")[0] for row in rows] == ["Ada's", "U.S.-trip,", "(Paris)"]
    status, output, said = tag("New\u00a0York \u3000 \u200b\tin\n".encode(), "--tokenized")
    (rows,) = blocks(output)
    assert [row.split("\t")[0] for row in rows] == ["New\u00a0York", "\u3000", "\u200b", "in"]
    assert said == "rnnkit tag: line 1: nothing can be seen of 2 of its 4 tokens\n"


def test_no_input_gives_no_output(tag):
    assert tag(b"") == (0, "", "")
    status, output, _ = tag(b"\n\n")
    assert (status, blocks(output)) == (0, [[], []])


def test_a_byte_order_mark_is_no_part_of_the_text(tag):
    assert tag(b"\xef\xbb\xbfAda\n") == tag(b"Ada\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "0"], "expected batch_size of 1 or more, got 0"),
        (["--device", "abacus"], "--device abacus: Expected one of cpu, cuda"),
        (
            ["--format", "spacy", "--confidence"],
            "--confidence is a column of --format conll, got spacy; json has confidences too",
        ),
        (
            ["--format", "spacy", "--scheme", "bio"],
            "--scheme is for the tags of --format conll and json, got spacy",
        ),
    ],
)
def test_an_argument_out_of_range_is_one_sentence(tag, arguments, sentence):
    status, output, said = tag(b"Ada\n", *arguments)
    assert (status, output) == (1, "")
    assert said.startswith(f"rnnkit tag: {sentence}")
    assert said.count("\n") == 1


def test_a_checkpoint_of_another_task_is_refused(tag, tmp_path):
    model = LanguageModel(5, embedding_size=4, hidden_size=4)
    path = tmp_path / "lm.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {}}, path)
    status, _, said = tag(b"Ada\n", ckpt=path)
    assert status == 1
    assert said == f"rnnkit tag: {path} is no checkpoint of a tagger: no TaggingData\n"
    status, _, said = tag(b"", ckpt=tmp_path / "none.ckpt")
    assert status == 1
    assert "none.ckpt" in said


def start(checkpoint, *arguments, **environment):
    return Process(
        [sys.executable, "-m", "rnnkit.cli", "tag", "--ckpt", checkpoint, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_one_line_at_a_time_answers_before_the_next_is_read_until_ctrl_c(checkpoint):
    process = start(checkpoint, "--batch-size", "1", "--format", "json", PYTHONIOENCODING="ascii")
    try:
        for name in ("Ada", "Zoë"):
            process.stdin.write(f"{name}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["tokens"] == [name]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_head_is_no_error(checkpoint, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = start(checkpoint, "--format", "colour", "--batch-size", "8")  # by way of rich
    try:
        process.stdout.close()
        _, errors = process.communicate(b"Ada and Paris\n" * 3000, timeout=120)
    finally:
        process.kill()
    assert (process.returncode, errors) == (128 + 13, b"")

"""Tagging: its loss, its scores, how sure it is, what a checkpoint holds."""

import itertools
import math
from pathlib import Path
from random import Random

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from seqeval.metrics import f1_score
from seqeval.scheme import IOBES
from torch.nn import functional as F
from torchcrf import CRF as Reference

from rnnkit.data.schemes import SCHEMES, entities, tag_names, violations
from rnnkit.metrics.entities import EntityF1
from rnnkit.tagging.data import TaggingData
from rnnkit.tagging.tag import EntityTagger
from rnnkit.tagging.task import Tagger
from rnnkit.tagging.words import UNKNOWN_ID, Sentences
from rnnkit.training.callbacks.generator_states import GeneratorStates
from tests.small_runs import Losses, make_trainer, parameters

NAMES = {"PER": ["Ada", "Alan Turing", "Bo"], "LOC": ["Paris", "New York City", "Rome"]}
PLAIN = ["the", "a", "cat", "sees", "hears", "under", "tree"]


def sentences(number, seed):
    """Plain words with names between them, as columns of words and BIO tags."""
    random = Random(seed)
    made = []
    for _ in range(number):
        rows = []
        for _ in range(random.randint(1, 2)):
            rows += [f"{random.choice(PLAIN)} O" for _ in range(random.randint(0, 3))]
            kind = random.choice(["LOC", "PER"])
            first, *rest = random.choice(NAMES[kind]).split()
            rows += [f"{first} B-{kind}", *(f"{word} I-{kind}" for word in rest)]
        made.append("\n".join(rows))
    return made


def write(folder, **splits):
    for seed, (name, number) in enumerate((("train", 60), ("valid", 15), ("test", 15))):
        text = splits.get(name, sentences(number, seed))
        (folder / f"{name}.txt").write_text("\n\n".join(text) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tagged"))


def make_data(folder, **changes):
    return TaggingData(folder, **{"batch_size": 8, "eval_batch_size": 6, **changes})


def make_model(data, **changes):
    torch.manual_seed(0)
    settings = {
        "embedding_size": 8, "character_embedding_size": 5, "character_size": 6, "casing_size": 3,
        "hidden_size": 9, "dropout": 0.0, "singleton_dropout": 0.0, "scheme": data.scheme,
    }  # fmt: skip
    sizes = (data.vocabulary_size, data.character_vocabulary_size)
    return Tagger(*sizes, data.tags, **{**settings, **changes})


def batch_of(data):
    return next(iter(data.train_dataloader()))


def adam(rate):
    return lambda parameters: torch.optim.Adam(parameters, rate)


# Each output, kind of characters and combination of the directions is there, and each cell.
FORMS = [
    {"output": "crf", "characters": "lstm", "directions": "concat"},
    {"output": "crf", "characters": "cnn", "directions": "sum", "cell": "gru"},
    {"output": "crf", "characters": "none", "directions": "product", "locked_dropout": True},
    {"output": "softmax", "characters": "lstm", "directions": "learned", "num_layers": 2},
    {"output": "softmax", "characters": "cnn", "directions": "concat", "casing_size": 0},
    {"output": "softmax", "characters": "none", "directions": "sum", "cell": "rnn"},
    {
        "output": "softmax", "characters": "none", "num_layers": 3, "connection": "residual",
        "norm": "layer",
    },
    {
        "output": "crf", "characters": "none", "num_layers": 2, "connection": "dense",
        "norm": "batch",
    },
]  # fmt: skip
SOME = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))


@pytest.mark.training
@SOME
def test_training_learns_to_find_every_entity(folder, form):
    data = make_data(folder)
    sizes = {"embedding_size": 16, "hidden_size": 16, "dropout": 0.1}
    model = make_model(data, optimizer=adam(0.02), **sizes, **form)
    trainer = make_trainer(max_epochs=12, check_val_every_n_epoch=12)
    trainer.fit(model, data)
    assert {name: float(trainer.callback_metrics[f"val/{name}"]) for name in (
        "f1", "precision", "recall")} == {"f1": 1.0, "precision": 1.0, "recall": 1.0}  # fmt: skip
    assert trainer.callback_metrics["val/loss"] < 0.2


def test_the_layers_over_words_are_the_stack_that_is_asked_for(folder):
    data = make_data(folder)
    model = make_model(data, num_layers=2, connection="dense", norm="batch", dropout=0.25)
    stack = model.rnn
    assert (stack.connection, stack.norm, stack.dropout.p) == ("dense", "batch", 0.25)
    width = 8 + 2 * 6 + 3  # a word, its characters, its casing
    assert [layer.input_size for layer in stack.layers] == [width, width + 2 * 9]
    with pytest.raises(ValueError, match=f"highway needs .* reads {width} and gives 18"):
        make_model(data, connection="highway")


@SOME
def test_a_sentence_is_scored_alike_whatever_stands_beside_it(folder, form):
    data = make_data(folder)
    model = make_model(data, **form).eval()
    text = [block.split("\n") for block in sentences(9, seed=5)]
    words = [[row.split()[0] for row in rows] for rows in text]
    words.append(["Extraordinarily", *words[0][:1]])  # longer words pad the characters
    together = model(data.encoder.encode(words))
    for b, sentence in enumerate(words):
        alone = model(data.encoder.encode([sentence]))
        torch.testing.assert_close(together[: len(sentence), b], alone[:, 0])
    batch = data.encoder.encode(words)
    padded = batch._replace(
        words=F.pad(batch.words, (0, 0, 0, 4)),
        casing=F.pad(batch.casing, (0, 0, 0, 4)),
        spelling=F.pad(batch.spelling, (0, 0, 0, 4)),
        characters=F.pad(batch.characters, (0, 0, 0, 3)),
    )
    emissions = model(padded)
    assert len(emissions) == len(together) + 4
    for b, sentence in enumerate(words):
        torch.testing.assert_close(emissions[: len(sentence), b], together[: len(sentence), b])
    assert model.decode(emissions, padded) == model.decode(together, batch)


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (("paris", "PARIS"), {"characters": "none", "casing_size": 0}),  # one id
        (("rats", "star"), {"characters": "none"}),  # unknown, of one casing
    ],
)
def test_casing_and_characters_tell_words_of_one_id_apart(folder, words, without):
    data = make_data(folder)
    for changes, alike in (({}, False), (without, True)):
        model = make_model(data, **changes).eval()
        one, other = (model(data.encoder.encode([[word]])) for word in words)
        assert torch.equal(one, other) == alike
    model = make_model(data, characters="none").eval()
    one, other = (model(data.encoder.encode([[word]])) for word in ("paris", "PARIS"))
    assert not torch.equal(one, other)


def true_losses(model, data, batch):
    """Of every sentence, or of every word, each sentence by itself and by other code."""
    lengths = batch.sentences.lengths.tolist()
    emissions = model(batch.sentences)
    if model.crf is not None:
        reference = Reference(len(data.tags))
        reference.load_state_dict(model.crf.state_dict())
        return [
            -float(reference(emissions[:n, b : b + 1], batch.target[:n, b : b + 1]).detach())
            for b, n in enumerate(lengths)
        ]
    return [
        float(F.cross_entropy(emissions[t, b], batch.target[t, b]).detach())
        for b, n in enumerate(lengths)
        for t in range(n)
    ]


@pytest.mark.training
@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_the_loss_is_the_mean_over_sentences_or_over_words(folder, output):
    data = make_data(folder)
    model, seen = make_model(data, output=output), Losses()
    make_trainer(callbacks=[seen], max_steps=1, limit_val_batches=0).fit(model, data)
    model = make_model(data, output=output)
    losses = true_losses(model, data, batch_of(make_data(folder)))
    assert len(losses) == 8 if output == "crf" else len(losses) > 16
    assert seen.values[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    scores = {}
    for size in (15, 4):  # batches of 15, or of 3, 4, 4 and 4
        data = make_data(folder, eval_batch_size=size)
        model = make_model(data, output=output)
        (scores[size],) = make_trainer().validate(model, data, verbose=False)
    losses = [loss for batch in data.val_dataloader() for loss in true_losses(model, data, batch)]
    for found in scores.values():
        assert found["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for name in ("f1", "precision", "recall"):
        assert scores[15][f"val/{name}"] == scores[4][f"val/{name}"]


def batch_of_lengths(*lengths):
    """A batch that has lengths and nothing else."""
    zeros = torch.zeros(max(lengths), len(lengths), dtype=torch.int64)
    return Sentences(zeros, zeros, zeros, zeros, zeros[0] + 1, torch.tensor(lengths))


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
@pytest.mark.parametrize("form", ["constrained", "unconstrained", "softmax"])
def test_confidences_are_sums_over_all_paths(folder, scheme, form):
    tags = tag_names(["PER"], scheme)
    options = {"output": "softmax"} if form == "softmax" else {"constrained": form == "constrained"}
    torch.manual_seed(1)
    model = Tagger(9, 9, tags, scheme, hidden_size=4, **options).double().eval()
    for parameter in model.crf.parameters() if model.crf else ():
        torch.nn.init.normal_(parameter)
    lengths = (4, 1, 3) if scheme == "BILOU" else (5, 2, 4)
    batch = batch_of_lengths(*lengths)
    emissions = torch.randn(max(lengths), len(lengths), len(tags), dtype=torch.float64)
    paths = [
        {
            path: score(model, emissions[:n, b], path)
            for path in itertools.product(range(len(tags)), repeat=n)
            if form != "constrained" or not violations([tags[i] for i in path], scheme)
        }
        for b, n in enumerate(lengths)
    ]
    random, checked = Random(0), 0
    for _ in range(4):
        chosen = [random.choice(sorted(each)) for each in paths]
        written = [[tags[i] for i in path] for path in chosen]
        found = [entities(each, scheme) for each in written]
        confidences = model.confidences(emissions, batch, written, found)
        for each, path, spans, sure in zip(paths, chosen, found, confidences, strict=True):
            assert len(spans) == len(sure)
            whole = sum(each.values())
            for entity, value in zip(spans, sure, strict=True):
                part = slice(entity.start, entity.end)
                held = sum(weight for other, weight in each.items() if other[part] == path[part])
                assert value == pytest.approx(held / whole, rel=1e-9)
                assert 0 <= value <= 1
                checked += 1
    assert checked > 4


def score(model, emissions, path):
    total = sum(emissions[t, tag] for t, tag in enumerate(path))
    if model.crf is not None:
        total = total + model.crf.start_transitions[path[0]] + model.crf.end_transitions[path[-1]]
        total = total + sum(model.crf.transitions[pair] for pair in itertools.pairwise(path))
    return math.exp(total)


def test_confidences_of_many_entities_are_those_of_each(folder):
    data = make_data(folder)
    model, batch = make_model(data).eval(), batch_of(data)
    with torch.no_grad():
        emissions = 3 * model(batch.sentences)
    tags = model.decode(emissions, batch.sentences)
    found = [entities(each, "BILOU") for each in tags]
    assert sum(map(len, found)) > 4
    together = model.confidences(emissions, batch.sentences, tags, found)
    for b, each in enumerate(found):
        for n, entity in enumerate(each):
            alone = [[] for _ in found]
            alone[b] = [entity]
            (value,) = model.confidences(emissions, batch.sentences, tags, alone)[b]
            assert together[b][n] == value
            assert 0 <= value <= 1
    nothing = [[] for _ in found]
    assert model.confidences(emissions, batch.sentences, tags, nothing) == nothing


@pytest.mark.parametrize("scheme", SCHEMES)
def test_constrained_decoding_keeps_to_the_scheme(scheme):
    tags = tag_names(["PER", "LOC"], scheme)
    lengths = [*range(1, 13)] * 210  # 10,080 sentences in the four schemes
    batch = batch_of_lengths(*lengths)
    torch.manual_seed(0)
    emissions = 4 * torch.randn(12, len(lengths), len(tags))
    broken = {}
    for constrained in (True, False):
        model = Tagger(5, 5, tags, scheme, hidden_size=4, constrained=constrained)
        found = model.decode(emissions, batch)
        assert [len(each) for each in found] == lengths
        broken[constrained] = sum(len(violations(each, scheme)) for each in found)
    assert broken[True] == 0 < broken[False]


def test_the_softmax_decodes_the_best_tag_of_each_word():
    tags = tag_names(["PER"], "BIO")
    model = Tagger(5, 5, tags, "BIO", output="softmax", hidden_size=4)
    emissions = torch.tensor([[[1.0, 2, 0], [0, 1, 3]], [[5, 0, 0], [9, 9, 9]]])
    assert model.decode(emissions, batch_of_lengths(2, 1)) == [["B-PER", "O"], ["I-PER"]]


class Watched(Tagger):
    """Keeps what it reads, with whether it was training."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.read = []

    def forward(self, sentences):
        self.read.append((self.training, sentences))
        return super().forward(sentences)


@pytest.mark.training
def test_words_become_unknown_as_often_as_asked_and_in_training_only(tmp_path):
    text = [
        "\n".join(["Ada B-PER", *(f"{'often' if i % 2 else f'only{_letters(n, i)}'} O"
                                  for i in range(20))])
        for n in range(100)
    ]  # fmt: skip
    folder = write(tmp_path, train=text, valid=text[:50], test=text[:5])
    data = make_data(folder, batch_size=100, eval_batch_size=100)
    assert int(batch_of(data).rare.sum()) == 1000
    for word, singleton in ((0.1, 0.4), (0.0, 0.4), (0.2, 0.0), (0.0, 0.0)):
        sizes = (data.vocabulary_size, data.character_vocabulary_size, data.tags)
        model = Watched(
            *sizes, hidden_size=4, dropout=0.0, word_dropout=word, singleton_dropout=singleton
        )
        make_trainer().fit(model, data)
        (training, read), (validating, kept) = model.read
        assert (training, validating) == (True, False)
        # The same words in a batch of training that nobody changed.
        whole = batch_of(make_data(folder, batch_size=100))
        assert torch.equal(read.spelling, whole.sentences.spelling)
        changed = read.words != whole.sentences.words
        assert read.words[changed].eq(UNKNOWN_ID).all()
        rates = [float(changed[where].float().mean()) for where in (whole.rare, ~whole.rare)]
        assert rates == pytest.approx([max(word, singleton), word], abs=0.05)
        assert [rate == 0 for rate in rates] == [max(word, singleton) == 0, word == 0]
        assert kept.words.ne(UNKNOWN_ID).all()


def _letters(n, i):
    """Different letters for different numbers, for digits are all the same."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{n:03}{i:02}")


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("Paris 1 2 3 4\nrome 5 6 7 8\nzebra 9 10 11 12\n")
    return str(path)


@pytest.mark.training
@pytest.mark.parametrize("frozen", [True, False])
def test_vectors_are_the_words_first_embeddings_and_stay_where_frozen(folder, vectors, frozen):
    data = make_data(folder, vectors=vectors)
    before = make_model(data, embedding_size=4).embedding.weight.detach()
    model = make_model(data, embedding_size=4, freeze_embedding=frozen, optimizer=adam(1e-3))
    make_trainer(max_steps=3, limit_val_batches=0).fit(model, data)
    words, weight = data.encoder.words, model.embedding.weight.detach()
    rows = weight[[words.index(word) for word in ("paris", "rome", "zebra")]]
    expected = torch.arange(1.0, 13.0).view(3, 4)
    assert torch.equal(rows, expected) == frozen
    torch.testing.assert_close(rows, expected, atol=0.01, rtol=0)
    others = [i for i, word in enumerate(words.tokens) if word not in ("paris", "rome", "zebra")]
    assert torch.equal(weight[others], before[others]) == frozen
    torch.testing.assert_close(weight[others], before[others], atol=0.01, rtol=0)
    assert weight[0].eq(0).all()


@pytest.mark.training
def test_vectors_of_another_width_are_refused_with_both_numbers(folder, vectors):
    data = make_data(folder, vectors=vectors)
    with pytest.raises(ValueError, match="vectors have 4 elements, embedding_size is 8: make it 4"):
        make_trainer(max_steps=1).fit(make_model(data), data)


@pytest.mark.training
def test_random_vectors_are_not_frozen(folder):
    data = make_data(folder)
    with pytest.raises(ValueError, match="freeze_embedding would keep random vectors"):
        make_trainer(max_steps=1).fit(make_model(data, freeze_embedding=True), data)


class SaveAt(GeneratorStates):
    """The callback of every run, which also saves after a step; the same where it does not."""

    state_key = "SaveAt"

    def __init__(self, step=None, path=None):
        super().__init__()
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.training
@pytest.mark.parametrize("output", ["crf", "softmax"])
@pytest.mark.parametrize("step", [5, 8])  # within an epoch of 8 steps, at its end
def test_a_resumed_run_equals_the_unbroken_one(folder, vectors, tmp_path, step, output):
    changes = {
        "output": output, "embedding_size": 4, "dropout": 0.3, "character_dropout": 0.2,
        "word_dropout": 0.2, "singleton_dropout": 0.5, "characters": "lstm",
    }  # fmt: skip
    path = tmp_path / "middle.ckpt"
    settings = {"max_steps": 20, "max_epochs": -1, "limit_val_batches": 0}
    data = make_data(folder, vectors=vectors)
    assert len(data.train_dataloader()) == 8
    unbroken = make_model(data, **changes)
    make_trainer(callbacks=[SaveAt(step, path)], **settings).fit(unbroken, data)
    data = make_data(folder, vectors=vectors)
    resumed = make_model(data, **changes)
    torch.manual_seed(1)
    trainer = make_trainer(callbacks=[SaveAt()], **settings)
    trainer.fit(resumed, data, ckpt_path=path)
    assert trainer.global_step == 20
    assert torch.equal(parameters(resumed), parameters(unbroken))


def trained(folder, path, **changes):
    data = make_data(folder)
    model = make_model(data, **changes)
    trainer = make_trainer(max_steps=3, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(path)
    return model.eval(), data


@pytest.mark.training
def test_a_checkpoint_tags_as_the_model_did(folder, tmp_path):
    model, data = trained(folder, tmp_path / "m.ckpt", directions="learned", characters="cnn")
    tagger = EntityTagger.from_checkpoint(tmp_path / "m.ckpt")
    words = [["Ada", "hears", "Zoe"], [], ["New", "York"]]
    batch = data.encoder.encode([words[0], words[2]])
    expected = model.decode(model(batch), batch)
    found = tagger.tag(words)
    assert [line.tags for line in found] == [expected[0], [], expected[1]]
    assert [line.words for line in found] == words
    assert not tagger.model.training


@pytest.mark.training
def test_a_checkpoint_of_another_model_is_refused_with_every_difference(folder, tmp_path):
    _, data = trained(folder, tmp_path / "m.ckpt")
    other = make_model(data, output="softmax", directions="sum")
    with pytest.raises(ValueError, match=r"directions concat .* sum here; output crf .* softmax"):
        make_trainer().test(other, data, ckpt_path=tmp_path / "m.ckpt", verbose=False)


@pytest.mark.training
def test_a_checkpoint_with_other_words_or_tags_is_refused(folder, tmp_path):
    trained(folder, tmp_path / "m.ckpt")
    text = (Path(folder) / "train.txt").read_text()
    others = {"words: ": text.replace("cat", "tac"), "tags": text.replace("-PER", "-XXX")}
    for message, changed in others.items():
        other = tmp_path / message[:4]
        other.mkdir()
        data = make_data(write(other, train=[changed], valid=[changed], test=[changed]))
        with pytest.raises(ValueError, match=message):
            make_trainer().test(
                make_model(data), data, ckpt_path=tmp_path / "m.ckpt", verbose=False
            )


def test_a_test_prints_conllevals_table_and_draws_the_confusion(folder, tmp_path, capsys):
    data = make_data(folder)
    model = make_model(data)
    trainer = make_trainer(logger=True, default_root_dir=tmp_path)
    (scores,) = trainer.test(model, data, verbose=False)
    expected = EntityF1("BILOU")
    model.eval()
    for batch in data.test_dataloader():
        expected.update(model.decode(model(batch.sentences), batch.sentences), batch.references)
    assert expected.table() in capsys.readouterr().out
    assert scores["test/f1"] == pytest.approx(float(expected.compute()["f1"]))
    (picture,) = tmp_path.rglob("confusion.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_evaluation_counts_its_own_sentences_only(folder, capsys):
    data = make_data(folder)
    model = make_model(data)
    trainer = make_trainer()
    (first,), (second,) = (trainer.validate(model, data, verbose=False) for _ in range(2))
    assert first == second
    tables = []
    for _ in range(2):
        capsys.readouterr()
        trainer.test(model, data, verbose=False)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert tables[0].startswith("processed ")
    for scores in (model.validation_scores, model.test_scores):
        assert scores.table().startswith("processed 0 tokens")
    assert model.validation_loss.weight == model.test_loss.weight == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size of 1 or more, got 0"),
        ({"tags": []}, "the number of tags of 1 or more, got 0"),
        ({"casing_size": -1}, "casing_size of 0 or more, got -1"),
        ({"dropout": 1.5}, "dropout between 0 and 1, got 1.5"),
        ({"singleton_dropout": -0.1}, "singleton_dropout between 0 and 1, got -0.1"),
        ({"characters": "gru"}, "characters lstm, cnn or none, got 'gru'"),
        ({"output": "linear"}, "output crf or softmax, got 'linear'"),
        (
            {"directions": "mean"},
            "directions concat, sum, product, learned, learned_matrix, got 'mean'",
        ),
        ({"tags": ["O", "X-PER"]}, "'X-PER' is no tag of BILOU"),
    ],
)
def test_options_out_of_bounds_are_refused(changes, message):
    sizes = {"vocabulary_size": 5, "character_vocabulary_size": 5, "tags": ["O", "U-PER"]}
    with pytest.raises(ValueError, match=message):
        Tagger(**{**sizes, **changes})


LABELLED = ["the DET", "dog NOUN", "runs VERB", "it PRON", "! PUNCT", "barks VERB"]


def labelled(folder, **splits):
    """A corpus of words with labels, which tell words apart, and `splits` in place of some."""
    folder.mkdir(exist_ok=True)
    random = Random(0)
    for name, number in (("train", 60), ("valid", 15), ("test", 15)):
        made = ["\n".join(random.choices(LABELLED, k=random.randint(1, 7))) for _ in range(number)]
        (folder / f"{name}.txt").write_text("\n\n".join(splits.get(name, made)) + "\n")
    return str(folder)


@pytest.mark.training
@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_labels_are_learned_and_scored_by_their_accuracy(tmp_path, output, capsys):
    data = make_data(labelled(tmp_path / "corpus"), scheme="labels")
    assert data.tags == ["DET", "NOUN", "PRON", "PUNCT", "VERB"]
    model = make_model(data, output=output, optimizer=adam(0.02))
    assert model.crf is None or model.crf.constraints is None
    logger = {"logger": True, "default_root_dir": tmp_path}
    trainer = make_trainer(max_epochs=8, check_val_every_n_epoch=8, **logger)
    trainer.fit(model, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/accuracy"] == logged["val/f1_macro"] == 1
    assert not any(name.startswith(("val/f1_D", "val/precision")) for name in logged)
    assert trainer.progress_bar_metrics.keys() >= {"val/accuracy"}
    (scores,) = trainer.test(model, data, verbose=False)
    assert {"test/accuracy", "test/f1_macro", "test/loss"} == scores.keys()
    words = sum(int(batch.sentences.lengths.sum()) for batch in data.test_dataloader())
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"processed {words} tokens; right: {words}."
    assert told[1] == "accuracy: 100.00%; macro F1: 100.00"
    assert [line.split()[0] for line in told[3:8]] == data.tags
    assert told[8].startswith("which labels are taken for which: ")
    assert list(tmp_path.rglob("confusion.png"))


def test_labels_too_many_to_be_read_are_not_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rnnkit.tagging.task._MOST_DRAWN", 4)
    data = make_data(labelled(tmp_path / "corpus"), scheme="labels")
    trainer = make_trainer(logger=True, default_root_dir=tmp_path)
    trainer.test(make_model(data), data, verbose=False)
    assert "no picture of 5 labels: nobody could read over 4" in capsys.readouterr().out
    assert not list(tmp_path.rglob("confusion.png"))


def plateau(mode, monitor=None):
    if monitor is None:
        return lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode)
    return lambda optimizer: ReduceLROnPlateau(optimizer, monitor=monitor, mode=mode)


@pytest.mark.training
@pytest.mark.parametrize(
    ("labels", "absent", "instead"),
    [
        (True, "val/f1", "val/accuracy"),
        (True, "val/recall_PER", "val/accuracy"),
        (False, "val/accuracy", "val/f1"),
        (False, "val/f1_macro", "val/f1"),
    ],
)
def test_a_score_that_is_never_logged_is_refused_before_training(
    tmp_path, folder, labels, absent, instead
):
    data = (
        make_data(labelled(tmp_path / "corpus"), scheme="labels") if labels else make_data(folder)
    )
    what = "labels" if labels else "entities"
    message = f" watches {absent}, a score that {what} do not have: make its monitor {instead}, as "
    others = [ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, monitor="val/loss")]
    watching = ModelCheckpoint(tmp_path, monitor=absent, mode="max")
    for callbacks, scheduler in ((watching, None), (None, plateau("max", absent))):
        trainer = make_trainer(
            callbacks=[*others[:1], *filter(None, [callbacks]), *others[1:]],
            enable_checkpointing=True,
        )
        name = "ModelCheckpoint" if callbacks else "ReduceLROnPlateau"
        option = "trainer.callbacks" if callbacks else "model.lr_scheduler"
        typed = f"--{option}.monitor {instead} does"
        with pytest.raises(ValueError, match=name + message + typed):
            trainer.fit(make_model(data, lr_scheduler=scheduler), data)
        assert trainer.global_step == 0
    model = make_model(data, lr_scheduler=plateau("max"))
    make_trainer(max_steps=1).fit(model, data)  # which watches the right one


ACME = ["Ada B-PER\nhears O\nACME B-ORG\nInc I-ORG", "Rome B-LOC", "Zorg B-ORG\nhears O\nBo B-PER"]


@pytest.mark.training
@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_unseen_types_are_missed_and_left_out_of_the_loss(tmp_path, output):
    known = sentences(4, seed=7)
    data = make_data(write(tmp_path, test=[*ACME, *known]), unseen_types="missed", scheme="BIOES")
    model = make_model(data, output=output, optimizer=adam(0.05))
    trainer = make_trainer(max_epochs=4, limit_val_batches=0)
    trainer.fit(model, data)
    (scores,) = trainer.test(model, data, verbose=False)
    model.eval()
    predicted, references, losses = [], [], []
    for batch in data.test_dataloader():
        emissions = model(batch.sentences)
        predicted += model.decode(emissions, batch.sentences)
        references += batch.references
    assert references[0] == ["S-PER", "O", "B-ORG", "E-ORG"]
    strict = {"mode": "strict", "scheme": IOBES, "zero_division": 0}
    f1 = f1_score(references, predicted, **strict)
    assert 0.4 < f1 < 1
    assert scores["test/f1"] == pytest.approx(f1)
    assert scores["test/f1_ORG"] == 0
    # With the CRF whole sentences are left out, else words.
    kept = [ACME[1], *known] if output == "crf" else [*ACME, *known]
    (tmp_path / "kept").mkdir()
    others = make_data(write(tmp_path / "kept", test=kept), unseen_types="missed", scheme="BIOES")
    for batch in others.test_dataloader():
        if output == "crf":
            losses += true_losses(model, data, batch)
            continue
        emissions = model(batch.sentences).detach()
        for t, b in (batch.sentences.mask & (batch.target >= 0)).nonzero().tolist():
            losses.append(float(F.cross_entropy(emissions[t, b], batch.target[t, b])))
    words = sum(len(row.split("\n")) for row in known)
    assert len(losses) == (5 if output == "crf" else words + 8 - 3)
    assert scores["test/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_scores_that_are_not_finite_are_not_decoded(output, value):
    tags = tag_names(["PER"], "BIO")
    model = Tagger(5, 5, tags, "BIO", output=output, hidden_size=4)
    batch = batch_of_lengths(3, 1)
    emissions = torch.randn(3, 2, 3)
    emissions[1:, 1] = value  # padding
    assert len(model.decode(emissions, batch)) == 2
    emissions[2, 0, 1] = value
    with pytest.raises(FloatingPointError, match="of sentence 0 of the batch are NaN or infinite"):
        model.decode(emissions, batch)


def test_a_model_that_is_not_finite_is_not_tested(folder):
    data = make_data(folder)
    for output, value in (("crf", math.nan), ("softmax", math.inf)):
        model = make_model(data, output=output)
        model.casing.weight.data[0, 0] = value
        with pytest.raises(FloatingPointError, match=r"casing\.weight is NaN or infinite"):
            make_trainer().test(model, data, verbose=False)


@pytest.mark.training
def test_a_training_that_diverges_before_a_validation_is_told_what_helps(folder):
    class Break(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            module.emissions.bias.data[0] = math.nan

    data = make_data(folder)
    trainer = make_trainer(callbacks=[Break()], val_check_interval=1, log_every_n_steps=50)
    with pytest.raises(FloatingPointError, match=r"emissions\.bias is not finite after step 1, .*"
                       "lower the learning rate"):  # fmt: skip
        trainer.fit(make_model(data), data)

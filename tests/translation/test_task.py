"""Translation: its loss, its scores, what a checkpoint holds."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from rnnkit.metrics.bleu import BLEU
from rnnkit.training.callbacks.generator_states import GeneratorStates
from rnnkit.translation.data import BEGIN, END, PADDING, UNKNOWN, Pairs, TranslationData
from rnnkit.translation.samples import SampleTranslations
from rnnkit.translation.task import Translation
from rnnkit.translation.translator import Translator
from rnnkit.translation.written import best_text
from tests.small_runs import Losses, make_trainer, parameters

FORMS = {
    "inside": {},
    "after": {"attention": "general", "attention_inside": False},
    "feeding": {"attention": "general", "attention_inside": False, "input_feeding": True},
    "none": {"attention": "none"},
    "stack": {"encoder_layers": 2, "encoder_connection": "residual", "encoder_norm": "layer"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences of two to six made-up words, and the same in another language, reversed."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    for name, lines in (("train", 200), ("valid", 20), ("test", 20)):
        sides = [], []
        for _ in range(lines):
            size = int(torch.randint(2, 7, (), generator=generator))
            ids = torch.randint(8, (size,), generator=generator).tolist()
            sides[0].append(" ".join(f"wort{'abcdefgh'[i]}" for i in ids))
            sides[1].append(" ".join(f"word{'abcdefgh'[i]}" for i in reversed(ids)))
        for language, side in zip(("de", "en"), sides, strict=True):
            (folder / f"{name}.{language}").write_text("\n".join(side) + "\n")
    return str(folder)


def make_data(folder, **changes):
    settings = {"source": "de", "target": "en", "batch_tokens": 100, "eval_batch_size": 7}
    return TranslationData(folder, **{**settings, **changes})


def make_model(data, **changes):
    torch.manual_seed(0)
    sizes = {"embedding_size": 12, "encoder_size": 10, "hidden_size": 14, "max_length": 12}
    vocabularies = (data.source_vocabulary_size, data.target_vocabulary_size)
    return Translation(*vocabularies, **{**sizes, **changes})


def batch_of(data):
    return next(iter(data.train_dataloader()))


@pytest.mark.training
@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_mean_over_real_targets(folder, form):
    data = make_data(folder)
    smooth, plain = (make_model(data, label_smoothing=share, **FORMS[form]) for share in (0.1, 0.0))
    losses = {}
    for name, model in (("smooth", smooth), ("plain", plain)):
        seen = Losses()
        make_trainer(callbacks=[seen], max_steps=1).fit(model, data)
        losses[name] = seen.values[0]
    model, batch = make_model(data, **FORMS[form]), batch_of(make_data(folder))
    log_probabilities = model(batch).log_softmax(-1).double()
    summed = smoothed = tokens = 0
    for b, length in enumerate(batch.target_lengths.tolist()):
        for t in range(length):
            row = log_probabilities[t, b]
            gold = row[batch.target[t + 1, b]]
            summed -= gold
            smoothed -= 0.9 * gold + 0.1 * row.mean()
            tokens += 1
    assert losses["plain"] == pytest.approx(float(summed / tokens), rel=1e-5)
    assert losses["smooth"] == pytest.approx(float(smoothed / tokens), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_no_logit(folder, form):
    data = make_data(folder)
    model, batch = make_model(data, **FORMS[form]), batch_of(data)
    padded = Pairs(
        F.pad(batch.source, (0, 0, 0, 3), value=PADDING), batch.source_lengths,
        F.pad(batch.target, (0, 0, 0, 2), value=PADDING), batch.target_lengths, batch.references,
        batch.sources,
    )  # fmt: skip
    expected, found = model(batch), model(padded)
    assert len(found) == len(expected) + 2
    for b, length in enumerate(batch.target_lengths.tolist()):
        torch.testing.assert_close(found[:length, b], expected[:length, b])


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_decoding_gives_the_logits_of_training(folder, form):
    data = make_data(folder)
    model, batch = make_model(data, **FORMS[form]).eval(), batch_of(data)
    logits = model(batch)
    logits[..., [PADDING, BEGIN]] = -torch.inf  # which are never written
    expected = logits.log_softmax(-1)
    state = model.start((batch.source, batch.source_lengths))
    for t, tokens in enumerate(batch.target[:-1]):
        found, state = model.step(tokens, state)
        torch.testing.assert_close(found, expected[t])


def test_without_teacher_forcing_the_model_reads_its_own_words(folder):
    data = make_data(folder)
    model, batch = make_model(data).eval(), batch_of(data)
    logits = model(batch, teacher_forcing=0.0)
    own = torch.cat([batch.target[:1], logits.argmax(-1)[:-1]])
    read = batch._replace(target=torch.cat([own, batch.target[-1:]]))
    torch.testing.assert_close(logits, model(read))
    assert not torch.allclose(logits, model(batch))


@pytest.mark.training
def test_teacher_forcing_falls_over_the_epochs(folder):
    data = make_data(folder)
    model = make_model(data, teacher_forcing=1.0, teacher_forcing_end=0.2, teacher_forcing_epochs=4)
    seen = []
    forward = model.forward

    def watched(pairs, teacher_forcing=1.0):
        if model.training:
            seen.append((model.current_epoch, round(teacher_forcing, 6)))
        return forward(pairs, teacher_forcing)

    model.forward = watched
    make_trainer(max_epochs=6, limit_train_batches=1, limit_val_batches=0).fit(model, data)
    assert seen == [(0, 1.0), (1, 0.8), (2, 0.6), (3, 0.4), (4, 0.2), (5, 0.2)]


@pytest.mark.training
def test_training_learns_to_translate(folder, capsys):
    data = make_data(folder)
    model = make_model(
        data, embedding_size=32, encoder_size=32, hidden_size=32,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 0.01),
    )  # fmt: skip
    trainer = make_trainer(max_epochs=35, check_val_every_n_epoch=35)
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/bleu"] > 90
    assert trainer.callback_metrics["val/exact_match"] > 70
    assert trainer.callback_metrics["val/ppl"] < 1.5
    (scores,) = trainer.test(model, data, verbose=False)
    assert min(scores[f"test/{name}"] for name in ("bleu", "bleu_tokenized", "chrf")) > 90
    said = capsys.readouterr().out
    assert "test/bleu: nrefs:1|case:lc|eff:no|tok:13a" in said
    assert "test/bleu_tokenized: nrefs:1|case:lc|eff:no|tok:none" in said
    batch = next(iter(data.test_dataloader()))
    model.eval()
    found = model.translate((batch.source, batch.source_lengths))
    texts = [best_text(each, data.target_tokenizer) for each in found]
    assert sum(a == b for a, b in zip(texts, batch.references, strict=True)) >= 5


def test_scores_are_those_of_the_whole_text_at_once(folder):
    scores = {}
    for size in (20, 3):
        data = make_data(folder, eval_batch_size=size)
        model = make_model(data)
        (scores[size],) = make_trainer().validate(model, data, verbose=False)
    for name in ("val/ppl", "val/bleu"):
        assert scores[20][name] == pytest.approx(scores[3][name], rel=1e-5)
    data = make_data(folder, eval_batch_size=20)
    (batch,) = data.val_dataloader()
    model = make_model(data).eval()
    losses = F.cross_entropy(
        model(batch).flatten(0, 1), batch.target[1:].flatten(), ignore_index=PADDING
    )
    assert scores[20]["val/ppl"] == pytest.approx(math.exp(float(losses)), rel=1e-5)
    bleu = BLEU()
    source = (batch.source, batch.source_lengths)
    found = model.translate(source, model.greedy)
    written = [best_text(each, data.target_tokenizer) for each in found]
    bleu.update(written, batch.references)
    assert scores[20]["val/bleu"] == pytest.approx(float(bleu.compute()), abs=1e-4)
    equal = sum(map(str.__eq__, written, batch.references))
    assert scores[20]["val/exact_match"] == pytest.approx(100 * equal / len(written))


def test_the_beam_finds_nothing_less_probable_than_greedy_search(folder):
    data = make_data(folder)
    model = make_model(data, length_penalty=0.0).eval()
    batch = next(iter(data.val_dataloader()))
    source = (batch.source, batch.source_lengths)
    for (beam,), (greedy,) in zip(
        model.translate(source), model.translate(source, model.greedy), strict=True
    ):
        assert beam.log_probability >= greedy.log_probability - 1e-5
        assert len(beam.tokens) <= 12
        assert beam.attention is not None
        assert beam.attention.shape == (len(beam.tokens), len(batch.source))


@pytest.mark.training
@pytest.mark.parametrize("step", [5, 20])
def test_a_resumed_run_equals_the_unbroken_one(folder, tmp_path, step):
    changes = {"dropout": 0.3, "teacher_forcing": 0.7}
    path = tmp_path / "middle.ckpt"
    settings = {"max_steps": 30, "max_epochs": -1, "limit_val_batches": 0}
    unbroken = make_model(make_data(folder), **changes)

    class Save(GeneratorStates):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == step:
                trainer.save_checkpoint(path)

    make_trainer(callbacks=[Save()], **settings).fit(unbroken, make_data(folder))
    resumed = make_model(make_data(folder), **changes)
    torch.manual_seed(1)

    class Load(Save):
        def on_train_batch_end(self, *_):
            pass

        state_key = Save().state_key

    make_trainer(callbacks=[Load()], **settings).fit(resumed, make_data(folder), ckpt_path=path)
    assert torch.equal(parameters(resumed), parameters(unbroken))


@pytest.mark.training
def test_a_translator_writes_what_the_model_wrote(folder, tmp_path):
    data = make_data(folder)
    model = make_model(data, cell="lstm", encoder_layers=2)
    trainer = make_trainer(max_steps=3, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    translator = Translator.from_checkpoint(tmp_path / "m.ckpt")
    batch = next(iter(data.test_dataloader()))
    model.eval()
    expected = [h[0].tokens for h in model.translate((batch.source, batch.source_lengths))]
    found = translator.translate(batch.sources, model.beam, batch_size=3)
    assert [each.best[0].tokens for each in found] == expected


@pytest.mark.training
def test_a_checkpoint_of_another_model_is_refused_with_every_difference(folder, tmp_path):
    data = make_data(folder)
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(make_model(data), data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    other = make_model(data, cell="lstm", hidden_size=20)
    with pytest.raises(ValueError, match=r"cell gru .* lstm here; hidden_size 14 .* 20 here"):
        make_trainer().test(other, data, ckpt_path=tmp_path / "m.ckpt", verbose=False)


@pytest.mark.training
def test_samples_and_attention_are_written_after_every_validation(folder, tmp_path):
    data = make_data(folder)
    trainer = make_trainer(
        max_epochs=2, logger=True, default_root_dir=tmp_path, callbacks=[SampleTranslations(3)]
    )
    trainer.fit(make_model(data), data)
    (text,) = tmp_path.rglob("translations.txt")
    blocks = text.read_text()
    assert blocks.count("epoch ") == 2
    assert blocks.count("  source       wort") == 6
    assert blocks.count("  reference    word") == 6
    assert blocks.count("  translation  ") == 6
    (picture,) = tmp_path.rglob("attention.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def write_pairs(folder, **sides):
    """A corpus of these lines, the same in every split but where a split has its own."""
    folder.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = sides.get(f"{split}_{language}", sides[language])
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


@pytest.mark.training
def test_what_the_scores_leave_out_is_told_once_a_run(tmp_path, caplog, capsys):
    path = write_pairs(tmp_path / "pairs", de=["A b c d e f", "g"], en=["Ja Wohl", "nein"])
    data = make_data(path, lowercase=True)
    model = make_model(data, max_source=4, lowercase=False)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, data)
    told = [record.getMessage() for record in caplog.records if "Note" in record.getMessage()]
    assert [text.split(",")[0] for text in told] == [
        "Note: data.lowercase lets the model write lower case alone",
        "Note: of source lines with more than 4 tokens only these are translated "
        "(--model.max_source)",
        "Note: val/bleu: no reference has 4 tokens as tokenize 13a cuts them (the longest has 2)",
    ]
    assert "the first such has 6." in told[1]
    caplog.clear()
    capsys.readouterr()
    trainer.test(model, data, verbose=False)
    assert caplog.text.count("Note: test/bleu: no reference has 4 tokens") == 1
    assert caplog.text.count("--model.max_source") == 1
    assert "test/bleu: nrefs:1|case:mixed|eff:yes|tok:13a" in capsys.readouterr().out


@pytest.mark.training
def test_ordinary_text_is_scored_without_a_word(folder, caplog):
    path = write_pairs(Path(folder) / "plain", de=["a b c d e"], en=["f g h i j"])
    data = make_data(path)
    trainer = make_trainer()
    trainer.fit(make_model(data), data)
    trainer.test(make_model(data), data, verbose=False)
    assert "Note" not in caplog.text


@pytest.mark.training
@pytest.mark.parametrize("level", ["word", "bpe"])
def test_samples_show_the_lines_of_the_files_and_what_was_written(tmp_path, level):
    path = write_pairs(
        tmp_path / "pairs", de=["Der Hund", "Der Hund"], en=["the dog", "the dog"],
        valid_de=["", "Der  Vogel été"], valid_en=["nothing", "The Bird"],
    )  # fmt: skip
    data = make_data(path, level=level, bpe_size=270, lowercase=True)
    model = make_model(data, max_source=6)
    with torch.no_grad():
        model.softmax.bias[UNKNOWN], model.softmax.bias[END] = 9.0, -9.0
    drawn = []
    run = {"logger": CSVLogger(tmp_path), "callbacks": [SampleTranslations(2)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "rnnkit.translation.attention_picture.draw_attention",
            lambda *given: drawn.append(given),
        )
        make_trainer(max_steps=1, **run).fit(model, data)
    (text,) = tmp_path.rglob("translations.txt")
    shown = [line[15:] for line in text.read_text().splitlines() if line.startswith("  ")]
    assert shown[:5] == ["", "nothing", "", "Der  Vogel été", "The Bird"]
    assert shown[5].split(" ")[:2] == ["<unk>", "<unk>"]
    ((source, target, weights, _),) = drawn
    assert weights.shape == (len(target), len(source))
    assert target[:2] == ["<unk>", "<unk>"]
    expected = {"word": ["der", "<unk>", "<unk>"], "bpe": ["▁der", "▁", "▁", "v", "o", "g"]}
    assert source == [*expected[level], "<eos>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenize": "chinese"}, "expected tokenize to be one of none, zh, 13a, .*'chinese'"),
        ({"max_source": 0}, "expected max_source of 1 or more, got 0"),
        ({"dropout": 1.5}, "expected dropout between 0 and 1, got 1.5"),
        ({"teacher_forcing_end": -0.1}, "expected teacher_forcing_end between 0 and 1"),
        ({"attention": "dot", "attention_inside": False}, "got 14 in the decoder and 20 in"),
        ({"bridge": "last"}, "got 1 layers of 20 in the encoder"),
        ({"input_feeding": True}, "input_feeding goes with attention after"),
    ],
)
def test_options_out_of_bounds_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(make_data(folder), **changes)


def test_the_encoder_is_the_stack_that_is_asked_for(folder):
    stack = make_model(make_data(folder), **FORMS["stack"]).encoder.rnn
    assert (stack.connection, stack.norm, stack.hidden_sizes) == ("residual", "layer", (10, 10))


def test_every_cell_attention_and_bridge_fits_together(folder):
    data = make_data(folder)
    batch = batch_of(data)
    for cell, form, bridge in itertools.product(
        ("lstm", "gru", "rnn"), FORMS.values(), ("tanh", "last", "zero")
    ):
        sizes = {"encoder_size": 7, "hidden_size": 14, "encoder_layers": 2, "decoder_layers": 2}
        model = make_model(data, cell=cell, bridge=bridge, tied=True, **{**sizes, **form})
        logits = model(batch)
        assert logits.shape == (*batch.target[1:].shape, data.target_vocabulary_size)
        assert logits.isfinite().all()
        tokens = torch.full((batch.source.shape[1],), BEGIN)
        assert model.step(tokens, model.start((batch.source, batch.source_lengths)))[0].shape
    assert END != BEGIN

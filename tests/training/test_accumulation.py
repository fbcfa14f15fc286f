"""Accumulated gradients are those of one batch that holds all: a sum over targets, divided once."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from rnnkit.cli import main
from rnnkit.language_modeling.windows import IGNORED
from rnnkit.tagging.data import TaggingData
from rnnkit.tagging.task import Tagger
from rnnkit.training.accumulation import Accumulation
from rnnkit.translation.data import PADDING, TranslationData
from rnnkit.translation.task import Translation
from tests.small_runs import make_data, make_model, make_trainer, parameters
from tests.small_tasks import language_model as arguments_of

pytestmark = pytest.mark.training

RATE = 0.5


def sgd(parameters):
    return torch.optim.SGD(parameters, RATE)


def language_model(folder, text):
    (folder / "corpus").mkdir()
    for name in ("train", "valid", "test"):
        (folder / "corpus" / f"{name}.txt").write_text(" ".join(text))
    # 49 steps: four windows of 10, and one of 9
    data = make_data(str(folder / "corpus"), batch_size=len(text) // 50)
    return data, make_model(data, optimizer=sgd)


def sums_of_language_model(model, batches):
    state = None
    for window in batches:
        logits, state = model(window.input, state)
        state = tuple(part.detach() for part in state)
        target = window.target.flatten()
        summed = F.cross_entropy(logits.flatten(0, 1), target, reduction="sum")
        yield summed, int((target != IGNORED).sum())


def translation(folder, text):
    (folder / "pairs").mkdir()
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = [" ".join(text[i : i + 1 + i % 5]) for i in range(40)]
            (folder / "pairs" / f"{name}.{language}").write_text("\n".join(lines))
    data = TranslationData(str(folder / "pairs"), source="de", target="en", batch_tokens=40)
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "encoder_size": 8, "hidden_size": 8, "dropout": 0.0}
    vocabularies = (data.source_vocabulary_size, data.target_vocabulary_size)
    return data, Translation(*vocabularies, **sizes, label_smoothing=0.0, optimizer=sgd)


def sums_of_translation(model, batches):
    for pairs in batches:
        target = pairs.target[1:].flatten()
        logits = model(pairs).flatten(0, 1)
        summed = F.cross_entropy(logits, target, ignore_index=PADDING, reduction="sum")
        yield summed, int((target != PADDING).sum())


def tagging(folder, text, output):
    (folder / "tagged").mkdir()
    for name in ("train", "valid", "test"):
        sentences = [
            "".join(
                f"{word} {'B-X' if word == 'w1' else 'O'}\n" for word in text[i : i + 1 + i % 4]
            )
            for i in range(38)
        ]
        (folder / "tagged" / f"{name}.txt").write_text("\n".join(sentences))
    data = TaggingData(str(folder / "tagged"), batch_size=8)
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 8, "dropout": 0.0, "singleton_dropout": 0.0}
    vocabularies = (data.vocabulary_size, data.character_vocabulary_size, data.tags, data.scheme)
    return data, Tagger(*vocabularies, **sizes, output=output, optimizer=sgd)


def sums_of_tagging(model, batches):
    for batch in batches:
        losses = model.negative_log_likelihood(model(batch.sentences), batch)
        yield losses.sum(), losses.numel()


TASKS = {
    "language model": (language_model, sums_of_language_model, {}),
    "translation": (translation, sums_of_translation, {}),
    "crf": (tagging, sums_of_tagging, {"output": "crf"}),
    "softmax": (tagging, sums_of_tagging, {"output": "softmax"}),
}


@pytest.mark.parametrize("accumulated", [3, 4])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_divides_by_all_targets_of_its_batches(task, accumulated, tmp_path):
    make, sums, options = TASKS[task]
    generator = torch.Generator().manual_seed(0)
    text = [f"w{i}" for i in torch.randint(9, (100,), generator=generator).tolist()]
    data, model = make(tmp_path, text, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    counts, batches = [], []

    class Recorded(type(model)):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            batches.append(batch)

    model.__class__ = Recorded
    trainer = make_trainer(accumulate_grad_batches=accumulated, limit_val_batches=0)
    trainer.fit(model, data)
    trained = parameters(model)

    model.load_state_dict(before)
    optimizer, group = sgd(model.parameters()), []
    optimizer.zero_grad()
    model.train()
    for index, (summed, count) in enumerate(sums(model, batches)):
        counts.append(count)
        group.append((summed, count))
        if (index + 1) % accumulated and index + 1 < len(batches):
            continue
        (sum(s for s, _ in group) / sum(n for _, n in group)).backward()
        optimizer.step()
        optimizer.zero_grad()
        group = []
    assert len(batches) % accumulated, "the last step has fewer batches"
    assert len(set(counts)) > 1, "batches have other numbers of targets"
    assert trainer.global_step == -(-len(batches) // accumulated)
    assert torch.allclose(trained, parameters(model), atol=1e-5)


def test_a_last_window_alone_moves_as_far_as_without_accumulation(corpus):
    """Of the fifth window of five, four of which are one step."""

    def moved(accumulated, last):
        data = make_data(corpus)
        model = make_model(data, optimizer=sgd, loss_reduction="sum_over_time")
        trainer = make_trainer(
            accumulate_grad_batches=accumulated, limit_train_batches=last, limit_val_batches=0
        )
        trainer.fit(model, data)
        return parameters(model)

    start = parameters(make_model(make_data(corpus)))
    alone = moved(4, 1) - start
    assert torch.allclose(alone, moved(1, 1) - start, atol=1e-7)
    four, five = moved(4, 4), moved(4, 5)
    assert 0.5 < (five - four).norm() / (four - start).norm() < 2


@pytest.mark.parametrize("batches", [[(0, 0), (6, 3)], [(6, 3), (0, 0)], [(0.5, 0.25), (1, 0.5)]])
def test_a_batch_without_targets_adds_nothing(batches):
    weight, accumulation = torch.nn.Parameter(torch.ones(())), Accumulation(lambda each: each)
    for summed, divisor in batches:
        (weight * summed / accumulation.add(torch.tensor(divisor))).backward()
    accumulation.finish([weight])
    assert weight.grad.item() == 2


def test_an_optimizer_that_asks_again_cannot_accumulate(corpus):
    data = make_data(corpus)
    model = make_model(data, optimizer=lambda parameters: torch.optim.LBFGS(parameters, lr=0.1))
    with pytest.raises(ValueError, match="accumulate_grad_batches 2 cannot repeat: make it 1"):
        make_trainer(accumulate_grad_batches=2, max_steps=2).fit(model, data)


class EndWithin(Callback):
    """SIGTERM after the first of three batches that make a step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_is_stopped_within_a_step_ends_it_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", *arguments_of(tmp_path), "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.accumulate_grad_batches", "3", "--trainer.max_epochs", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--trainer.callbacks+", f"{__name__}.EndWithin"]) == 128 + 15
    runs = tmp_path / "runs" / "ptb_zaremba_small"
    stopped = runs / "version_1" / "checkpoints" / "last.ckpt"
    assert torch.load(stopped, weights_only=True)["global_step"] == 2
    assert main([*arguments, "--ckpt_path", str(stopped)]) == 0
    unbroken, again = (
        torch.load(runs / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("version_0", "version_2")
    )
    for name, value in unbroken.items():
        assert torch.equal(again[name], value), name

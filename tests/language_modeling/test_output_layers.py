"""Language models with each kind of softmax: trained, scored, saved and decoded."""

import pytest
import torch

from rnnkit.language_modeling.generate import Writer
from tests.small_runs import Losses, make_data, make_model, make_trainer

pytestmark = pytest.mark.training

OUTPUTS = ("full", "adaptive", "sampled", "hierarchical")


@pytest.mark.parametrize("output", OUTPUTS)
def test_training_lowers_the_exact_perplexity(corpus, output):
    data = make_data(corpus)
    model = make_model(
        data,
        output=output,
        output_samples=20,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )
    before = model.perplexity(data.val_dataloader()[0])
    losses = Losses()
    trainer = make_trainer(max_epochs=4, callbacks=[losses])
    trainer.fit(model, data)
    after = model.perplexity(data.val_dataloader()[0])
    assert after < 0.95 * before  # the words come at random, from one distribution
    assert float(trainer.callback_metrics["val/ppl"]) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("output", ["full", "adaptive", "hierarchical"])
def test_the_training_loss_is_the_mean_of_exact_losses(corpus, output):
    data = make_data(corpus)
    model = make_model(data, output=output)
    if output == "hierarchical":  # its tree follows from the counts
        model.decoder.set_counts(data.train_tokens.bincount(minlength=data.vocabulary_size))
    window = next(iter(data.train_dataloader()))
    logits, _ = model(window.input)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window.target.flatten())
    losses = Losses()
    make_trainer(max_steps=1, callbacks=[losses]).fit(model, data)
    assert losses.values[0] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_checkpoint_needs_no_corpus(corpus, tmp_path, output):
    data = make_data(corpus)
    model = make_model(data, output=output, output_samples=20)
    trainer = make_trainer(max_steps=3)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    if output in ("sampled", "hierarchical"):
        expected = torch.bincount(data.train_tokens, minlength=data.vocabulary_size)
        assert torch.equal(model.decoder.counts, expected)
    loaded = Writer.from_checkpoint(tmp_path / "model.ckpt").model
    tokens = torch.tensor([1, 2, 3])
    expected, _ = model.eval().step(tokens, None)
    found, _ = loaded.step(tokens, None)
    assert torch.equal(found, expected)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize("output", ["full", "sampled"])
def test_a_softmax_with_a_row_a_word_may_be_tied(corpus, output):
    data = make_data(corpus)
    model = make_model(data, output=output, output_samples=20, tied=True)
    make_trainer(max_steps=2).fit(model, data)
    assert model.decoder.weight is model.embedding.weight


@pytest.mark.parametrize("output", ["adaptive", "hierarchical"])
def test_other_outputs_are_not_tied(corpus, output):
    with pytest.raises(ValueError, match=f"full or sampled, got {output}"):
        make_model(make_data(corpus), output=output, tied=True)


def test_a_checkpoint_of_another_output_is_refused(corpus, tmp_path):
    data = make_data(corpus)
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_model(data), data)
    trainer.save_checkpoint(tmp_path / "full.ckpt")
    with pytest.raises(ValueError, match="output full in the checkpoint, sampled here"):
        make_trainer(max_steps=2).fit(
            make_model(data, output="sampled"), data, ckpt_path=tmp_path / "full.ckpt"
        )

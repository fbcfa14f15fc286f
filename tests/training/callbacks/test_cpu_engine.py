"""Which engine wrote a checkpoint: told where another one goes on, and nowhere else."""

import logging

import pytest
import torch

from rnnkit.training.callbacks.cpu_engine import CpuEngine
from rnnkit_kernels.functional import cpu_engine
from tests.conftest import needs_engine
from tests.small_runs import make_data, make_model, make_trainer

pytestmark = pytest.mark.training
OTHER = "native 01234567, avx2, 64 threads"


@pytest.fixture
def goes_on(corpus, tmp_path, caplog):
    """What is told when a run of two steps goes on to a third."""

    def told(change=lambda checkpoint: None, command="fit", **options):
        data, model = make_data(corpus), {"backend": options.pop("backend", "auto")}
        options["max_epochs"] = -1  # or there would be none to go on with
        first = make_trainer(callbacks=[CpuEngine()], max_steps=2, **options)
        first.fit(make_model(data, **model), data)
        first.save_checkpoint(tmp_path / "two.ckpt")
        checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "two.ckpt")
        caplog.clear()
        trainer = make_trainer(callbacks=[CpuEngine()], max_steps=3, **options)
        with caplog.at_level(logging.WARNING, logger="rnnkit"):
            run = getattr(trainer, command)
            path = tmp_path / "two.ckpt"
            run(make_model(data, **model), data, ckpt_path=path, weights_only=True)
        ours = (record for record in caplog.records if record.name.startswith("rnnkit"))
        return [record.getMessage() for record in ours]

    return told


def written_by(engine):
    return lambda checkpoint: checkpoint.update(cpu_engine=engine)


def test_the_same_engine_goes_on_in_silence(goes_on):
    seen = []
    assert goes_on(seen.append) == []
    assert seen[0]["cpu_engine"] == cpu_engine()


def test_another_engine_is_told_with_both_names(goes_on):
    assert goes_on(written_by(OTHER)) == [
        f"the engine that wrote the checkpoint was {OTHER}, and here it is {cpu_engine()}: the run "
        "goes on to the values of an unbroken one but for rounding, not to its bits"
    ]


def test_another_number_of_threads_is_another_engine(goes_on):
    def with_two_threads(checkpoint):
        torch.set_num_threads(2)  # the module's fixture sets it back

    try:
        (told,) = goes_on(with_two_threads)
    finally:
        torch.set_num_threads(1)
    assert ", 1 thread, and here it is " in told
    assert ", 2 threads: the run goes on" in told


def test_what_a_file_holds_reaches_no_terminal_as_a_control(goes_on):
    (told,) = goes_on(written_by("\x1b[31m" * 10**5))
    assert told.isprintable()
    assert len(told) < 3000


def test_a_checkpoint_from_before_there_was_the_entry_is_taken_in_silence(goes_on):
    assert goes_on(lambda checkpoint: checkpoint.pop("cpu_engine")) == []


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"precision": "bf16-mixed"}], ids=str)
def test_where_torchs_own_layers_run_none_is_saved_or_told(goes_on, options):
    seen = []

    def change(checkpoint):
        seen.append("cpu_engine" in checkpoint)
        checkpoint["cpu_engine"] = OTHER

    if "precision" in options and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("torch's LSTM has no bfloat16 here")
    assert goes_on(change, **options) == []
    assert seen == [False]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_what_only_uses_a_checkpoint_is_told_nothing(goes_on, command):
    assert goes_on(written_by(OTHER), command) == []


@needs_engine
def test_the_engine_is_named_by_its_build_its_instruction_set_and_its_threads():
    name, isa, threads = cpu_engine().split(", ")
    assert name.removeprefix("native ").isalnum()
    assert len(name) == len("native ") + 8
    assert isa in ("avx512", "avx2", "portable")
    assert threads == "1 thread"

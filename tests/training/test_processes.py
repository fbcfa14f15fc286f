"""Two processes that share the streams, or the examples of every batch, train as one does."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rnnkit.training.callbacks.checkpoint_io import read_checkpoint
from rnnkit.training.callbacks.percentile_clipping import percentile_clipping
from tests.forks import Process

ROOT = Path(__file__).parents[2]

# The configuration, with what makes a run small and without chance.
TASKS = {
    "lm/python_docs": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "8"),
        *("--trainer.limit_val_batches", "3", "--data.init_args.eval_batch_size", "2"),
        *("--model.init_args.dropout", "0"),
    ],
    "translation/dates": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "4"),
        *("--trainer.limit_val_batches", "2", "--data.init_args.eval_batch_size", "15"),
        *("--data.init_args.batch_tokens", "301"),
    ],
    "sequences/adding": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "4"),
        *("--trainer.limit_val_batches", "2", "--data.init_args.eval_batch_size", "15"),
        *("--data.init_args.length", "20", "--data.init_args.batch_size", "33"),
        *("--model.init_args.penalties", "[{name: identity, weight: 3.0}]"),
    ],
    "tagging/announcements": [
        *("--trainer.max_steps", "8", "--trainer.val_check_interval", "4"),
        *("--trainer.limit_val_batches", "2", "--data.init_args.eval_batch_size", "15"),
        *("--data.init_args.batch_size", "33", "--model.init_args.dropout", "0"),
        *("--model.init_args.singleton_dropout", "0"),
    ],
}


pytestmark = [
    pytest.mark.process,
    pytest.mark.training,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]

PYTHON = (sys.executable, "-m")
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def start(task, folder, *arguments, launcher=PYTHON, kind=Process, **environment):
    """Start to train on the CPU in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return kind(
        [
            *(*launcher, "rnnkit.cli", "fit", "-c", str(ROOT / "configs" / f"{task}.yaml")),
            *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "4"),
            *(*TASKS[task], *arguments),
        ],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
            **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def fit(task, folder, *arguments, **options):
    """Train; exit status and what was told on stderr."""
    process = start(task, folder, *arguments, **options)
    told = ended(process)
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=told)


def ended(process):
    """What a process told on stderr until its end."""
    try:
        return process.communicate(timeout=300)[1]
    finally:
        process.kill()


def last(folder):
    """The checkpoint to go on from."""
    return read_checkpoint(next(folder.glob("runs/*/version_0/checkpoints/last.ckpt")))


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_as_one(task, tmp_path):
    def train(name, *arguments, kind=Process):
        folder = tmp_path / name
        done = fit(task, folder, *arguments, kind=kind)
        assert done.returncode == 0, done.stderr
        run = folder / "runs" / Path(task).name / "version_0"
        with (run / "metrics.csv").open() as file:
            scores = [
                float(value)
                for row in csv.DictReader(file)
                for name, value in row.items()
                if value and name != "train/seconds"
            ]
        return last(folder), scores

    one, one_scores = train("one")
    # Forked, the second process too; for one task both as Lightning starts them for a user.
    kind = subprocess.Popen if task.startswith("lm") else Process
    two, two_scores = train("two", *TWO, kind=kind)
    assert two_scores == pytest.approx(one_scores, rel=1e-5)
    for name, parameter in one["state_dict"].items():
        if parameter.is_floating_point():
            assert torch.allclose(two["state_dict"][name], parameter, atol=1e-5), name
    carried = zip(two.get("carried_state", []), one.get("carried_state", []), strict=True)
    assert all(torch.allclose(state, expected, atol=1e-5) for state, expected in carried)
    assert len(two["generators"]) == 2
    if task.startswith("translation"):
        assert next((tmp_path / "two").rglob("translations.txt")).read_text().count("epoch") == 2


def test_two_processes_accumulate_as_one(tmp_path):
    """Their shares of a batch have other numbers of targets."""
    parameters = []
    for name, devices in (("one", ()), ("two", TWO)):
        accumulated = ("--trainer.accumulate_grad_batches", "3", "--trainer.max_steps", "4")
        done = fit("tagging/announcements", tmp_path / name, *accumulated, *devices)
        assert done.returncode == 0, done.stderr
        parameters.append(last(tmp_path / name)["state_dict"])
    for name, parameter in parameters[0].items():
        assert torch.allclose(parameters[1][name], parameter, atol=1e-5), name


class Thresholds(Callback):
    """Writes down what each process clips at in every step, to the last bit."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, *_):
        self.values.append(percentile_clipping(trainer).threshold)

    def on_train_end(self, trainer, *_):
        Path(f"thresholds_{trainer.global_rank}.json").write_text(json.dumps(self.values))


def test_two_processes_clip_at_one_percentile(tmp_path):
    """Their gradients are averaged before, so both have the norms of one process."""
    found = {}
    for name, devices in (("one", ()), ("two", TWO)):
        done = fit(
            *("tagging/announcements", tmp_path / name, *devices, "--trainer.max_steps", "26"),
            *("--trainer.val_check_interval", "26", "--trainer.gradient_clip_val", "null"),
            *("--trainer.callbacks+", "PercentileClipping", "--trainer.callbacks.percentile", "40"),
            *("--trainer.callbacks+", f"{__name__}.Thresholds"),
        )
        assert done.returncode == 0, done.stderr
        found[name] = [
            json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("*.json"))
        ]
    first, second = found["two"]
    assert first == second
    assert first[:20] == [None] * 20
    assert first[20:] == pytest.approx(found["one"][0][20:], rel=1e-4)
    assert len(first) == 26
    expected = last(tmp_path / "one")["state_dict"]
    for name, parameter in last(tmp_path / "two")["state_dict"].items():
        assert torch.allclose(parameter, expected[name], atol=1e-5), name


class Fault(Callback):
    """Something that goes wrong in one of the processes after step 5."""

    rank = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 5 and trainer.global_rank == self.rank:
            self.strike(trainer, pl_module)


class Scheduler(Fault):
    """SIGTERM to torchrun, which passes it on to the processes it has started."""

    def strike(self, trainer, pl_module):
        os.kill(os.getppid(), signal.SIGTERM)


class Termination(Fault):
    """SIGTERM to the process that the user has started."""

    def strike(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)


class Death(Fault):
    rank = 1

    def strike(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGKILL)


class NotANumber(Fault):
    rank = 1

    def strike(self, trainer, pl_module):
        for state in pl_module._training_state:
            state.fill_(torch.nan)


class Unwritable(Fault):
    """The folder of the checkpoints is gone, and cannot be made again."""

    def strike(self, trainer, pl_module):
        folder = Path(trainer.checkpoint_callback.dirpath)
        shutil.copytree(folder, folder.with_name("saved"))
        shutil.rmtree(folder)
        folder.write_text("")


def test_torchrun_saves_on_sigterm_and_one_process_goes_on(tmp_path):
    """The carried state of all streams is in the checkpoint, and shared anew."""
    task, steps = "lm/python_docs", ("--trainer.max_steps", "16")
    launcher = (*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    callback = ("--trainer.callbacks+", f"{__name__}.Scheduler")
    stopped = fit(task, tmp_path / "two", *TWO, *steps, *callback, launcher=launcher)
    assert stopped.returncode != 0
    step = last(tmp_path / "two")["global_step"]
    assert step in (8, 12)  # they agree every four steps, and the signal takes its time
    assert f"stopped after step {step}, go on with" in stopped.stderr
    path = next((tmp_path / "two").rglob("last.ckpt"))
    resumed = fit(task, tmp_path / "resumed", *steps, "--ckpt_path", str(path))
    assert resumed.returncode == 0, resumed.stderr
    unbroken = fit(task, tmp_path / "unbroken", *steps)
    assert unbroken.returncode == 0, unbroken.stderr
    expected = last(tmp_path / "unbroken")["state_dict"]
    for name, parameter in last(tmp_path / "resumed")["state_dict"].items():
        assert torch.allclose(parameter, expected[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("fault", "status", "told", "step"),
    [
        (Termination, 128 + signal.SIGTERM, "stopped after step 8, go on with", 8),
        (Death, None, "another process of this run has ended", 4),
        (NotANumber, 1, "the loss became nan at step 5 of", 4),
        (Unwritable, 1, "cannot write the checkpoint", 4),
    ],
)
def test_a_fault_in_one_of_two_processes_ends_both(fault, status, told, step, tmp_path):
    changes = ("--trainer.val_check_interval", "4", "--trainer.max_steps", "16")
    callback = ("--trainer.callbacks+", f"{__name__}.{fault.__name__}")
    done = fit("lm/python_docs", tmp_path / "run", *TWO, *changes, *callback)
    assert done.returncode == status or (status is None and done.returncode != 0), done.stderr
    assert told in done.stderr
    assert set(re.findall(r"at step (\d+) of", done.stderr)) <= {"5"}  # by the other one too
    assert "Traceback" not in done.stderr
    left = next(path for path in tmp_path.rglob("last.ckpt"))
    checkpoint = read_checkpoint(left)
    assert checkpoint["global_step"] == step
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_tasks_of_slurm_stop_together(tmp_path):
    """As srun starts and stops them: without SLURM, with its environment."""
    callback = ("--trainer.callbacks+", f"{__name__}.Termination", "--trainer.max_steps", "16")
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "fit", "SLURM_NODELIST": "127.0.0.1"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    tasks = []
    for task in ("0", "1"):
        own = {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        tasks.append(start("lm/python_docs", tmp_path / "run", *TWO, *callback, **job, **own))
    told = [ended(process) for process in tasks]
    assert [process.returncode for process in tasks] == [128 + signal.SIGTERM] * 2, told
    assert "stopped after step 8, go on with" in told[0]
    assert last(tmp_path / "run")["global_step"] == 8

"""SequenceData: a synthetic task's examples, drawn as they are needed."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Generator

from rnnkit.data.buckets import BatchLoader, InOrder
from rnnkit.data.fingerprint import fingerprint
from rnnkit.sequences.counting import AnBn, Dyck, Parity
from rnnkit.sequences.memory import Adding, CopyMemory, TemporalOrder
from rnnkit.sequences.problem import Examples, Problem
from rnnkit.training.task import check_sizes

ProblemName = Literal["adding", "copy", "order", "anbn", "dyck-1", "dyck-2", "parity"]

PROBLEMS: dict[ProblemName, Problem] = {
    "adding": Adding(),
    "copy": CopyMemory(),
    "order": TemporalOrder(),
    "anbn": AnBn(),
    "dyck-1": Dyck(1),
    "dyck-2": Dyck(2),
    "parity": Parity(),
}


class SequenceData(LightningDataModule):
    """Examples of a synthetic task: new ones at every training step, fixed ones for the scores.

    The examples of a training step follow from the seed and the step's number alone, so a run that
    goes on from a checkpoint reads what it would have read. Those of validation and test are the
    same for every seed. On W devices each has 1/W of the examples of every batch.

    Args:
        problem: adding, copy, order, anbn, dyck-1 and dyck-2 (one kind of brackets, or two), or
            parity.
        length: What has to be remembered grows with it: T of adding, order, dyck and parity, the
            blanks of copy, the largest n of anbn.
        test_length: The same for the test; null: `length`. A longer test shows what carries over.
        batch_size: Examples of a training step.
        steps_per_epoch: Steps between two validations.
        eval_examples: Examples of the validation, and of the test.
        eval_batch_size: Most of them in a batch; no effect on scores.
        seed: Decides the training examples.

    Attributes:
        input_size: Features of a step.
        output_size: Numbers or classes that are answered.
        every_step: Whether an answer is asked at every step, not after the last one alone.
        baselines: Under val and test, the loss of who does not look at the sequence.

    Raises:
        ValueError: There is no such problem, or a number is out of range.

    Example:
        >>> data = SequenceData("adding", length=20, batch_size=8)
        >>> next(iter(data.train_dataloader())).input.shape
        torch.Size([20, 8, 2])
    """

    def __init__(
        self,
        problem: ProblemName = "adding",
        length: int = 100,
        test_length: int | None = None,
        batch_size: int = 50,
        steps_per_epoch: int = 100,
        eval_examples: int = 1000,
        eval_batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if problem not in PROBLEMS:
            raise ValueError(f"expected problem {', '.join(PROBLEMS)}, got {problem!r}")
        self.problem = problem
        self.length = length
        self.test_length = length if test_length is None else test_length
        self._problem = PROBLEMS[problem]
        for name, value in (("length", length), ("test_length", self.test_length)):
            if value < self._problem.shortest:
                raise ValueError(
                    f"expected {name} of {self._problem.shortest} or more for {problem}, got "
                    f"{value}"
                )
        check_sizes(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            eval_examples=eval_examples,
            eval_batch_size=eval_batch_size,
        )
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.eval_examples = eval_examples
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.input_size = self._problem.input_size
        self.output_size = self._problem.output_size
        self.every_step = self._problem.every_step
        self.baselines = {
            "val": self._problem.baseline(length),
            "test": self._problem.baseline(self.test_length),
        }

    def train_dataloader(self) -> BatchLoader[Examples]:
        """Batches of new examples, this process's share of each."""

        def collate(indices: list[int]) -> Examples:
            step = indices[0] // self.batch_size
            drawn = self._draw(self.batch_size, self.length, f"{self.seed} train {step}")
            return drawn.rows([index % self.batch_size for index in indices])

        batches = _Steps(self.steps_per_epoch, self.batch_size)
        what = fingerprint([(self.problem, self.length, self.batch_size, self.seed)])
        return BatchLoader.for_trainer(batches, collate, self.trainer, True, what)

    def val_dataloader(self) -> BatchLoader[Examples]:
        """Batches of the validation examples, this process's share of each."""
        return self._fixed("val", self.length)

    def test_dataloader(self) -> BatchLoader[Examples]:
        """Batches of the test examples, this process's share of each."""
        return self._fixed("test", self.test_length)

    def _fixed(self, stage: str, length: int) -> BatchLoader[Examples]:
        examples = self._draw(self.eval_examples, length, stage)
        batches = InOrder(self.eval_examples, self.eval_batch_size)
        return BatchLoader.for_trainer(batches, examples.rows, self.trainer, False)

    def _draw(self, count: int, length: int, seed: str) -> Examples:
        # By a string, for a sum of seed and step would repeat another seed's examples.
        generator = Generator().manual_seed(Random(seed).getrandbits(63))
        return self._problem.draw(count, length, generator)

    def __str__(self) -> str:
        # Lightning's own asks every batch for an attribute that a named tuple has not.
        return f"{type(self).__name__}({self.problem!r})"

    def state_dict(self) -> dict[str, Any]:
        """The problem that a checkpoint is of."""
        return {"problem": self.problem}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint is of this problem; its length may be another.

        Raises:
            ValueError: It is of another one.
        """
        if state_dict["problem"] != self.problem:
            raise ValueError(
                f"the checkpoint was trained on problem {state_dict['problem']}, the data are "
                f"{self.problem}: use --data.init_args.problem {state_dict['problem']}"
            )


class _Steps:
    """Batches of training examples that are numbered on from step to step, over all epochs."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self._steps = steps
        self._batch_size = batch_size

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int) -> list[list[int]]:
        """The examples' numbers, of each step in an epoch counted from 0."""
        numbers = range(epoch * self._steps, (epoch + 1) * self._steps)
        size = self._batch_size
        return [[*range(number * size, (number + 1) * size)] for number in numbers]

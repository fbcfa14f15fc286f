"""`rnnkit fit | validate | test`: Lightning's command line, set up for our tasks."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rnnkit.screen.terminal import visible
from rnnkit.training.callbacks.averaged_checkpoint import AveragedCheckpoint
from rnnkit.training.callbacks.best_checkpoint import KeepBestCheckpoint
from rnnkit.training.callbacks.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from rnnkit.training.callbacks.cpu_engine import CpuEngine
from rnnkit.training.callbacks.curve import CurvePlot
from rnnkit.training.callbacks.divergence import KeepGoodCheckpoints
from rnnkit.training.callbacks.epoch_position import EpochPosition
from rnnkit.training.callbacks.generator_states import GeneratorStates
from rnnkit.training.callbacks.last_checkpoint import LastCheckpoint
from rnnkit.training.callbacks.nothing_to_do import NothingToDo
from rnnkit.training.callbacks.progress import TrainingProgress
from rnnkit.training.callbacks.signals import StopOnSignal
from rnnkit.training.class_names import import_named
from rnnkit.training.configurations import restrict
from rnnkit.training.factory import Factory
from rnnkit.training.help import answer, question
from rnnkit.training.messages import select_messages
from rnnkit.training.mistakes import lacking, told
from rnnkit.training.runs import name_of_run, root_of
from rnnkit.training.shipped import with_paths

_FROM_DATA = (
    "vocabulary_size",
    "source_vocabulary_size",
    "target_vocabulary_size",
    "character_vocabulary_size",
    "tags",
    "scheme",
    "input_size",
    "output_size",
    "every_step",
)


# What Lightning's barebones refuses to be asked for, and how it is not asked for.
_NOT_BARE: dict[str, Any] = {
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "profiler"), None),
    **dict.fromkeys(("enable_model_summary", "log_every_n_steps", "num_sanity_val_steps"), None),
    **dict.fromkeys(("fast_dev_run", "detect_anomaly"), False),
}


class NoProfiler(PassThroughProfiler):
    """Records nothing, as Lightning's default does, but makes no generator for each action.

    A step has some eighty actions, most of them hooks of callbacks.
    """

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return nullcontext()


class TrainingCLI(LightningCLI):
    """Any LightningModule and LightningDataModule, named by `class_path` in the configuration.

    What is in `_FROM_DATA` the model gets from the data, where the two have it.
    """

    arguments: list[str]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's without predict: commands of the tasks do that, and print what they find."""
        return {
            name: skipped
            for name, skipped in LightningCLI.subcommands().items()
            if name != "predict"
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data tell the model its vocabularies; float32 products."""
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="how float32 products are made, see torch.set_float32_matmul_precision: high is "
            "TF32 on a GPU, medium rounds their factors to bfloat16 on many CPUs; faster, less "
            "exact",
        )
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning's, but help and errors come from here where model or data are missing."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({"trainer.enable_model_summary": False})
        parser.add_lightning_class_args(LightningModule, "model", True, required=False)
        parser.add_lightning_class_args(LightningDataModule, "data", True, required=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep the arguments as they were given; or print the help that they ask for.

        Raises:
            ValueError: There is no model or no data.
            SystemExit: The help has been printed.
        """
        self.arguments = args
        for argument in args:  # of `--model.help Tagger`, which is no value that is read
            import_named(argument.rpartition("=")[2])
        if (asked := question(args)) is not None:
            given = parser.parse_args(with_paths(asked.arguments), defaults=False)
            print(visible(answer(asked, given[args[0]], _FROM_DATA)), end="")
            raise SystemExit(0)
        self.config = parser.parse_args(with_paths(args))
        for part in ("model", "data"):
            if self.config[args[0]].get(part) is None:
                raise ValueError(lacking(args, part))

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; the model can be copied, as callbacks that average do."""
        super().instantiate_classes()
        for name, value in list(vars(self.model).items()):
            if isinstance(value, partial):
                setattr(self.model, name, Factory(value))

    def before_instantiate_classes(self) -> None:
        """Set what holds for the whole process.

        Raises:
            ValueError: A model is to be scored that nobody has trained.
        """
        if self.subcommand != "fit" and self.config[self.subcommand].get("ckpt_path") is None:
            raise ValueError("--ckpt_path is missing: this would score an untrained model")
        torch.set_float32_matmul_precision(self.config[self.subcommand]["float32_matmul_precision"])

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the checkpoint's model arguments override the configuration and the
        # command line. Here the configuration counts; a checkpoint that disagrees is an error.
        pass

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with our logger where none is named, and our callbacks."""
        settings = self.config_init[self.subcommand]["trainer"]
        kwargs |= self._bare(settings) if settings.get("barebones") else self._equipped(settings)
        plugins = settings.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins])]
        kwargs["plugins"].append(AtomicCheckpointIO())
        trainer = super().instantiate_trainer(**kwargs)
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint and type(trainer.strategy).load_checkpoint is not Strategy.load_checkpoint:
            # FSDP unpickles whatever a file holds: only plain data get as far as that.
            if Path(checkpoint).is_dir():
                raise ValueError(
                    f"{checkpoint} is a folder, a checkpoint in shares: rnnkit reads single files, "
                    "which FSDP writes with state_dict_type full"
                )
            read_checkpoint(checkpoint)
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return trainer

    def _equipped(self, settings: Namespace) -> dict[str, Any]:
        """What a Trainer gets; our callbacks come after those of the configuration."""
        given: dict[str, Any] = {}
        logger, saves = settings.get("logger"), settings.get("enable_checkpointing") is not False
        ours = CSVLogger(root_of(settings.get("default_root_dir")), name=self._run_name())
        if logger is None or logger is True:
            given["logger"] = ours
        elif not logger:  # checkpoints and config.yaml lie where they would with one
            given["default_root_dir"] = ours.log_dir
            if self.subcommand != "fit" or not saves:
                self.save_config_callback = None  # there would be nothing beside it
        if settings.get("profiler") is None:
            given["profiler"] = NoProfiler()
        callbacks: list[Callback] = [
            GeneratorStates(),
            EpochPosition(),
            CpuEngine(),
            KeepGoodCheckpoints(),
            KeepBestCheckpoint(),
            CurvePlot(),
            NothingToDo(),
            StopOnSignal(shlex.join(["rnnkit", *self.arguments])),
        ]
        if saves:
            callbacks += [LastCheckpoint(), AveragedCheckpoint()]
        if settings.get("enable_progress_bar") is not False:
            callbacks.append(TrainingProgress())
        self.trainer_defaults["callbacks"] = callbacks
        return given

    def _bare(self, settings: Namespace) -> dict[str, Any]:
        """All that barebones switches off, switched off where a configuration asks for it too.

        Lightning refuses to be asked for both, and every configuration of a training asks.
        """
        callbacks = settings.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        bare = [each for each in callbacks if not isinstance(each, (Checkpoint, ProgressBar))]
        self.save_config_callback = None  # there is no folder of the run
        warnings.filterwarnings("ignore", message=r".*`self.log\(\)` but `Trainer\(barebones")
        print("barebones: no checkpoints, logs, pictures and progress, for the speed alone")
        return {**_NOT_BARE, "callbacks": bare}

    def _run_name(self) -> str:
        configs = self.config[self.subcommand].get("config") or []
        # Those that follow the first change something about it, such as the devices.
        return name_of_run(str(configs[0])) if configs else type(self.model).__name__


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large blocks that are freed, for the rest of the process.

    A step frees and takes again blocks of many megabytes (logits, gradients). By default they go
    back to the system each time and come back page by page, zeroed, which costs a small model's
    step time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def _lost_a_process(error: Exception) -> bool:
    """Whether talking to another process failed. Gloo has no class of errors, only its name."""
    if not torch.distributed.is_available():
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


def run(arguments: list[str]) -> TrainingCLI:
    """Do what a command line says.

    Args:
        arguments: `["fit", "-c", "configs/lm/python_docs.yaml"]`, for example.

    Returns:
        The command line's model, data and trainer after the run.

    Raises:
        ValueError: The arguments or the configuration make no sense; the message says which.
        ConnectionError: Another process of the run has ended.
        SystemExit: The process was told to end, by SIGTERM.
    """
    restrict()  # here, for Lightning's import lets configurations be read from addresses
    select_messages()
    # Lightning 2.6 uses a name that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # A run that goes on from another one's checkpoint has a folder of its own.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # Errors of the command line are raised, and told by the caller in one sentence.
    parser_settings: dict[str, Any] = {"prog": "rnnkit", "exit_on_error": False}
    parser_settings |= {command: {"exit_on_error": False} for command in TrainingCLI.subcommands()}
    try:
        return TrainingCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs=parser_settings,
            args=arguments,
        )
    except ArgumentError as error:
        raise ValueError(told(str(error), arguments)) from None
    except MisconfigurationException as error:
        raise ValueError(str(error)) from None
    except (RuntimeError, ValueError) as error:
        if "more than one stateful callback" in str(error):
            raise ValueError(str(error)) from None
        if not _lost_a_process(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConnectionError(
            "another process of this run has ended, and its own message tells why, or cannot be "
            f"reached ({reason}): mend that, and go on from the last checkpoint with --ckpt_path"
        ) from error
    except SIGTERMException:  # has no status, which would be that of a run that is complete
        raise SystemExit(128 + signal.SIGTERM) from None

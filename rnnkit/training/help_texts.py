"""What the help of `rnnkit fit`, `validate` and `test` says, and of which options."""

from __future__ import annotations

EXAMPLE = "tagging/announcements"
"""A configuration whose data every machine can make."""

ABOUT = {
    "fit": "Train the model of a configuration.",
    "validate": "Score a checkpoint on the validation data.",
    "test": "Score a checkpoint on the test data.",
}
"""What each command does."""

TRAINER = {
    "max_epochs": "passes over the training data; null is 1000, -1 no limit",
    "accelerator": "cpu, gpu, or auto: a GPU where there is one",
    "devices": "processes that share every batch",
    "default_root_dir": "folder of the runs; null is runs",
    "logger": "null writes metrics.csv, false nothing; or TensorBoardLogger",
    "max_steps": "optimizer steps; -1 is no limit",
    "callbacks": "more: `--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/ppl`",
    "precision": "32-true, bf16-mixed, 16-mixed or 64-true; null is 32-true",
    "gradient_clip_val": "largest norm of the gradient; null: no limit",
    "accumulate_grad_batches": "batches of one optimizer step",
    "val_check_interval": "steps between two validations, or a fraction of the epoch; null is 1.0",
    "log_every_n_steps": "steps between two rows of the training's scores; null is 50",
    "max_time": "end after this time, as 00:12:00:00 (days, hours, minutes, seconds)",
}
"""The options of Lightning's Trainer that are used most, first the most, and what they do here."""

_SCORING = ("accelerator", "devices", "default_root_dir", "logger", "precision")
USED = {"fit": tuple(TRAINER), "validate": _SCORING, "test": _SCORING}
"""Those that each command shows."""

GENERAL = (
    ("-c", "CONFIG", "a name of `rnnkit configs`, or a file"),
    ("--ckpt_path", "FILE", "the checkpoint to go on from or score"),
    ("--seed_everything", 0, "seeds Python, NumPy and torch"),
    ("--float32_matmul_precision", "highest", "or high, medium: faster, less exact"),
    ("--print_config", "", "print the whole configuration and end"),
)  # fmt: skip
"""The options that are of no part, their defaults and what they do."""

COPY = "`rnnkit configs NAME > mine.yaml` copies a configuration, which explains its keys."
WITHIN = "`--model.help Tagger --model.optimizer.help AdamW` explains an optimizer's options."
"""Where to read on: without a configuration, and with one."""

"""What the help of `rnnkit fit`, `validate` and `test` says, and of which options."""

from __future__ import annotations

EXAMPLE = "tagging/announcements"
"""A configuration whose data every machine can make."""

ABOUT = {
    "fit": "Train the model of a configuration.",
    "validate": "Score a checkpoint on the validation data of its configuration.",
    "test": "Score a checkpoint on the test data of its configuration.",
}
"""What each command does."""

TRAINER = {
    "max_epochs": "passes over the training data; -1: no limit; null: 1000 without max_steps",
    "max_steps": "optimizer steps; -1: no limit",
    "max_time": "end after this time, as 00:12:00:00 (days, hours, minutes, seconds)",
    "accelerator": "cpu, gpu, or auto: a GPU where there is one",
    "devices": "number of processes; every batch is shared among them",
    "precision": "32-true, bf16-mixed, 16-mixed or 64-true; null is 32-true",
    "gradient_clip_val": "largest norm of the gradient; null: no limit",
    "accumulate_grad_batches": "batches of one optimizer step",
    "val_check_interval": "steps between two validations, or a fraction of the epoch; null is 1.0",
    "log_every_n_steps": "steps between two rows of the training's scores; null is 50",
    "callbacks": "more: `--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/ppl`",
    "logger": "null writes metrics.csv, false nothing; TensorBoardLogger is another one",
    "default_root_dir": "folder of the runs; null is runs",
}
"""The options of Lightning's Trainer that are used most, and what they do here."""

USED = {
    "fit": tuple(TRAINER),
    **dict.fromkeys(
        ("validate", "test"),
        ("accelerator", "devices", "precision", "logger", "default_root_dir"),
    ),
}
"""Those that are listed for each command."""

GENERAL = (
    ("-c", "CONFIG", "a name that `rnnkit configs` lists, or the path of a file of yours; of "
     "several the later ones count"),
    ("--ckpt_path", "FILE", "the checkpoint to go on from, or to score"),
    ("--seed_everything", 0, "seeds Python, NumPy and torch"),
    ("--float32_matmul_precision", "highest", "how float32 products are made: highest, high (TF32 "
     "on a GPU) or medium, which are faster and less exact"),
    ("--print_config", "", "print the whole configuration and end"),
)  # fmt: skip
"""The options that are of no part, their defaults and what they do."""

MORE = (
    "`rnnkit configs NAME > mine.yaml` copies a configuration, which explains its keys. "
    "`--model.help Tagger --model.optimizer.help AdamW` shows the options of a class within a "
    "class."
)
"""Where to read on."""

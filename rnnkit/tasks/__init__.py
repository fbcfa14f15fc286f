"""Tasks: one LightningModule a file."""

from rnnkit.tasks.language_modeling import LanguageModel

__all__ = ["LanguageModel"]

"""Tasks: one LightningModule a file."""

from rnnkit.tasks.language_modeling import LanguageModel
from rnnkit.tasks.tagging import Tagger
from rnnkit.tasks.translation import Translation

__all__ = ["LanguageModel", "Tagger", "Translation"]

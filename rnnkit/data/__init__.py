"""Data: corpora by name or path, vocabularies, and one LightningDataModule a task."""

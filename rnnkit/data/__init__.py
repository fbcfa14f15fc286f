"""Data: what several tasks share: registry, storage, vocabulary, batches, vectors, schemes."""

"""Records to token batches: formats, wordings, label masks, padding. Knows nothing of models."""

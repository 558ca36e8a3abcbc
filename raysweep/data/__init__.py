"""Records to token batches: formats, prompt templates, label masks, padding. Knows nothing of models."""

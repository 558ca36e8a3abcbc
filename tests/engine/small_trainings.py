"""What runs that train are asked for in tests: a trainer of few steps, and the studies around it."""

from __future__ import annotations

TRAINER = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}
SWEPT = {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 10}}
LAYERS = 6


def finetuned(**asked):
    return {**SWEPT, "finetune": {"trainer": TRAINER, **asked}}


def calls_after(done, events_of, before):
    return [event["call"].split(" chunk")[0] for event in events_of(done)[before:] if event["event"] == "call_started"]

"""Studies that train, for tests that plan them, and the calls that they are planned as."""

from __future__ import annotations

from raysweep.engine.calls import TrainCall
from raysweep.engine.inspection import resolve_device
from raysweep.engine.pending import model_calls
from raysweep.engine.preparation import prepare

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
LAYERS = 6
FINETUNE = {"finetune": {"trainer": TRAINER}}
ADAPTATION = {"similarity": {}, "adaptation": {"trainer": TRAINER, "seeds": [0, 1], "top": 2}}
BACKDOOR = {
    "similarity": {},
    "backdoor": {"trainer": TRAINER, "trigger": "vexilla", "target": "Moon", "seeds": [0], "top": 1},
}


def trainings(config):
    facts, graph, _ = prepare(config, resolve_device)
    return [call for call in model_calls(config, facts, graph, {}) if isinstance(call, TrainCall)]

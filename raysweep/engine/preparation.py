"""What comes before a run, or a plan of one: everything that can be refused is refused, and the graph is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raysweep.collector import collection_paused
from raysweep.config import Config
from raysweep.engine.calls import TrainCall
from raysweep.engine.disk import bytes_to_write, check_room, check_writable
from raysweep.engine.facts import Facts
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, shortened
from raysweep.engine.inspection import inspect
from raysweep.engine.measuring import Measure, measure_here
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.promised import as_sized, with_promised
from raysweep.engine.reach import reach
from raysweep.engine.room import refuse_too_small
from raysweep.engine.template_dates import recorded_dates
from raysweep.engine.trackers import check_trackers


@collection_paused()
def prepare(
    config: Config,
    find_device: Callable[[str], str],
    check: Callable[[], None] = lambda: None,
    *,
    measure: Measure = measure_here,
    fresh: bool = False,
    may_assume: bool = False,
) -> tuple[Facts, Graph, RunFolder]:
    """Inspect and plan: everything that can be refused is refused here (InputError), and nothing is written.

    Only in an object store a small object is written, read and removed at once, to see that it can be.

    `find_device` is told `execution.device` and says which device that means where the work will be done;
    `measure` runs what is to be measured there. `check` is called once this process can use the storage, and refuses what others cannot. A `fresh` run looks at nothing that is committed, and
    has the room that it takes. Chat templates that read the clock are given the date that the folder has recorded. With `may_assume`, for plans, what is not here is taken as the config has it; then room on a
    disk here is not asked for.
    """
    folder = RunFolder(reach(config.storage, config.storage_options, write=True).absolute())
    folder.check_usable()
    check_trackers(config.execution.report_to, folder.root)
    check_writable(folder.root)
    check()
    dates = {} if fresh else recorded_dates(folder)
    facts = inspect(config, find_device, measure=measure, may_assume=may_assume, template_dates=dates)
    spill = config.execution.spill_folder
    if spill is not None and config.execution.executor == "local":  # a worker elsewhere has a disk of its own
        check_writable(spill, "execution.spill")
    if isinstance(folder.root, Path):
        facts = with_promised(config, facts, folder.root)
    graph = plan(config, facts)
    done = folder.committed() if folder.is_run and not fresh else {}
    sized, short = as_sized(facts), shortened(graph, done)
    if any(model.residency.memory for model in facts.models.values()):
        refuse_too_small(sized, model_calls(config, sized, short, done))
    if not facts.assumed:
        calls = model_calls(config, sized, short, done) if config.studies.trainings else ()
        trainings = [call for call in calls if isinstance(call, TrainCall)]
        at_once = 1 if config.execution.executor == "local" else len(trainings)  # a worker each, at most
        needed = bytes_to_write(facts, short, done, trainings, at_once)
        check_room(folder.root, needed - (folder.bytes_to_clear() if fresh else 0))
    return facts, graph, folder

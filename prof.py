import sys; sys.path[:0]=["/tmp/wt/page/tests/report"]
from synthetic import *
from raysweep.report import plotting, page_tables
import cProfile, pstats, time, tempfile
from pathlib import Path
from raysweep.report.page import write_report
T=make_tables(datasets=("s","t"),n_layers=24,n_examples=20)
def save(figure, stem):
    stem.parent.mkdir(parents=True, exist_ok=True)
    for x in (".png",".svg"): stem.with_name(stem.name+x).write_bytes(b"<svg/>")
    return stem.with_name(stem.name+".png"), stem.with_name(stem.name+".svg")
plotting.save=save
write_report(T, make_provenance(), Path(tempfile.mkdtemp())/"report")
t=time.process_time()
p=cProfile.Profile(); p.enable()
write_report(T, make_provenance(), Path(tempfile.mkdtemp())/"report")
p.disable(); print(time.process_time()-t)
pstats.Stats(p).sort_stats("cumtime").print_stats(45)

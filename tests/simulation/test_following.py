"""A run that goes on can be read by another process."""

from problems import digits_problem

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.report.progress import record_so_far
from fedjax_het.simulation.lock import holder


def test_what_is_on_disk_is_the_record_so_far(tmp_path):
    problem = digits_problem()
    options = {"rounds": 3, "eval_every": 1, "workdir": tmp_path, "targets": (0.05, 0.99)}
    with fh.Simulation(build("fedavg", problem, learning_rate=0.1), problem, **options) as run:
        assert record_so_far(tmp_path) is None  # nothing but the first model
        run.step()
        run.step()
        record, seen = run.record, record_so_far(tmp_path)
        assert seen.metrics == record.metrics
        assert seen.clients == record.clients
        assert seen.population == record.population
        assert seen.config == record.config
        assert [target["accuracy"] for target in seen.summary["targets"]] == [0.05, 0.99]
        ours = {name: seen.summary[name] for name in seen.summary if name != "targets"}
        assert ours == {name: record.summary[name] for name in ours}
        assert not holder(tmp_path).gone
        run.step()
        record = run.record
    assert holder(tmp_path) is None
    assert record_so_far(tmp_path) == record

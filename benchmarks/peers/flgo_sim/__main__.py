"""Runs FLGo's FedAvg: `python -m benchmarks.peers.flgo_sim FOLDER NAME`."""

import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path
from typing import Any

import flgo
import numpy as np
import torch
from flgo.algorithm import fedavg
from flgo.experiment.logger.simple_logger import SimpleLogger

from benchmarks.peers.torch_net import Net
from benchmarks.peers.work import Gate, Work, load


def run(work: Work, gate: Gate) -> list[np.ndarray]:
    """All rounds; returns the weights."""
    # FLGo reads its options from the command line, too.
    del sys.argv[1:]
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    clients = int(work.cohort.max()) + 1
    task = Path("task")
    (task / "record").mkdir(parents=True)
    (task / "log").mkdir()
    (task / "info").write_text(
        json.dumps({"benchmark": "benchmarks.peers.flgo_sim", "scene": "horizontal"})
    )
    names = [f"Client{k}" for k in range(clients)]
    (task / "data.json").write_text(json.dumps({"client_names": names, "folder": str(work.folder)}))

    class Logger(SimpleLogger):
        """Evaluates at the ends of the blocks."""

        rounds = -1

        def log_once(self, *args: Any, **kwargs: Any) -> None:
            """Counts a round; FLGo calls this once before the first."""
            del args, kwargs
            self.rounds += 1
            if self.rounds == 0:
                gate.ready()
            else:
                gate.after_round(self.rounds, lambda: self.coordinator.test()["accuracy"])

    class Server(fedavg.Server):
        """Samples the work's cohorts."""

        def sample(self) -> list[int]:
            """The clients of this round."""
            return work.cohort[self.current_round - 1].tolist()

    class Algorithm:
        """FLGo's FedAvg with that server."""

    Algorithm.Server, Algorithm.Client = Server, fedavg.Client  # type: ignore[attr-defined]

    def network() -> Net:
        return Net(work.network, work.leaves)

    runner = flgo.init(
        str(task),
        Algorithm,
        {
            "num_rounds": work.rounds,
            "num_epochs": 1,
            "learning_rate": work.learning_rate,
            "batch_size": work.batch,
            "proportion": work.cohort.shape[1] / clients,
            "aggregate": "other",
            "train_holdout": 0.0,
            "eval_interval": 1,
            "no_log_console": True,
            "no_tqdm": True,
            "gpu": [],
        },
        model=flgo.convert_model(network, "net"),
        Logger=Logger,
    )
    runner.run()
    net = network()
    trained = {k.removeprefix("model."): v for k, v in runner.model.state_dict().items()}
    net.load_state_dict(trained)
    return net.leaves()


def main() -> None:
    """Command line."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    gate.finish(run(work, gate))


if __name__ == "__main__":
    main()

"""Flower: `FedAvg` in `run_simulation`, with one Ray actor per core.

A supernode represents one position of the cohort, with another client in every round, so that every
round has the work's clients.
"""

import functools
import os
import sys

# Ray gives an actor as many threads as it has cores: one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.torch_loop import train_client
from benchmarks.peers.torch_net import Net, accuracy, channels_first
from benchmarks.peers.work import Gate, Work, load


@functools.cache
def loaded(folder: str) -> tuple[Work, torch.Tensor, torch.Tensor, Net]:
    """The work as tensors, and a network, once per process."""
    work = load(folder)
    y = torch.from_numpy(work.y.astype(np.int64))
    return work, channels_first(work.x), y, Net(work.network, work.leaves)


def make_client() -> ClientApp:
    """A client that trains on its samples of the round."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        work, x, y, net = loaded(config["folder"])
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        member = int(context.node_config["partition-id"])
        rows = work.samples(int(config["server-round"]) - 1, member)
        train_client(net, x[rows], y[rows], work.batch, work.learning_rate)
        content = RecordDict(
            {
                "arrays": ArrayRecord(net.state_dict()),
                "metrics": MetricRecord({"num-examples": len(rows)}),
            }
        )
        return Message(content=content, reply_to=message)

    return app


def make_server(work: Work, gate: Gate, net: Net) -> ServerApp:
    """A server that runs FedAvg and evaluates centrally at the ends of the blocks."""
    app = ServerApp()
    test_x, test_y = channels_first(work.test_x), torch.from_numpy(work.test_y.astype(np.int64))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        net.load_state_dict(arrays.to_torch_state_dict())
        if server_round == 0:
            gate.ready()
        else:
            gate.after_round(server_round, lambda: accuracy(net, test_x, test_y))
        return None

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        FedAvg(fraction_train=1.0, fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord(net.state_dict()),
            num_rounds=work.rounds,
            train_config=ConfigRecord({"folder": str(work.folder)}),
            evaluate_fn=evaluate,
        )

    return app


def main() -> None:
    """`python -m benchmarks.peers.flower_sim FOLDER NAME`."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    torch.manual_seed(0)
    net = Net(work.network, work.leaves)
    run_simulation(
        server_app=make_server(work, gate, net),
        client_app=make_client(),
        num_supernodes=work.cohort.shape[1],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1},
        },
    )
    gate.finish(net.leaves())


if __name__ == "__main__":
    # By its name: the actors then import this module once, and keep what they have loaded.
    from benchmarks.peers import flower_sim

    flower_sim.main()

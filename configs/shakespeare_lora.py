"""Low-rank adapters and full tuning of a transformer that has read other plays.

The transformer of `tinyshakespeare_pretrain.py` (247,857 parameters) is tuned on the 40 largest
roles of the plays of which no passage is in tinyshakespeare (10,215 training windows of 80
symbols), 10 roles a round, 6 steps of 8 windows each, on phones whose links take 43 % of the time
of a fully tuned task. `lora` trains adapters of rank 4 (16,836 parameters), `full` everything;
`scratch` begins with a drawn model. Step sizes of Adam: the better of 0.003 and 0.01 (`lora`,
`scratch`) and of 0.0003 and 0.001 (`full`) after 15 rounds on seed 10. Sending the start to the
devices once, 991 kB each, is not charged.

Command:   python -m launch.train --config=configs/tinyshakespeare_pretrain.py \
               --workdir=runs/tinyshakespeare
           python -m launch.compare --config=configs/shakespeare_lora.py:lora \
               --workdir=runs/shakespeare_lora
           and the same with full and scratch
Data:      shakespeare_roles.jsonl.gz and tinyshakespeare.txt in FEDJAX_HET_DATA
Results:   docs/results/objectives.md: perplexity 6.575 ± 0.005 with adapters and 6.559 ± 0.006 in
           full, from 6.88, with 14.7 times fewer bytes and 1.76 times less virtual time; 2 shared
           CPU cores, 4 minutes each.
"""

from ml_collections import ConfigDict

from fedjax_het.common.errors import require_known
from fedjax_het.data.sources.text import ROLES_VOCABULARY, TINY_PLAYS, TINY_VOCABULARY

START = "runs/tinyshakespeare"

# Options of the model and step size of each way to train.
WAYS = {
    "lora": ({"start": START, "lora": {"rank": 4, "alpha": 8.0}}, 0.01),
    "full": ({"start": START}, 0.0003),
    "scratch": ({}, 0.003),
}


def get_config(way: str = "lora") -> ConfigDict:
    require_known(way, WAYS, "way to train")
    model, learning_rate = WAYS[way]
    return ConfigDict(
        {
            "data": {
                "source": "shakespeare",
                "vocabulary": "".join(sorted({*ROLES_VOCABULARY, *TINY_VOCABULARY})),
                "exclude": TINY_PLAYS,
                "window": 80,
                "test_fraction": 0.1,
                "num_clients": 40,
                "seed": 0,
            },
            "model": {
                "name": "transformer",
                "layers": 3,
                "width": 96,
                "heads": 4,
                "hidden": 192,
                **model,
            },
            "objective": {"name": "next_token"},
            "fleet": {"name": "phones", "seed": 0},
            "algorithm": {
                "name": "fedavg",
                "client_optimizer": "adam",
                "learning_rate": learning_rate,
                "batch_size": 8,
                "local_steps": 6,
                "clients_per_round": 10,
            },
            "run": {"rounds": 24, "eval_every": 3, "target_metric": "perplexity"},
            "compare": {
                "methods": {way: {}},
                "seeds": (0, 1, 2),
                "targets": (6.7, 6.65),
            },
        }
    )

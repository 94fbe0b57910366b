"""A small transformer that has read tinyshakespeare, the start of `shakespeare_lora.py`.

Three layers of width 96 (247,857 parameters), windows of 80 symbols; four equal clients with a
quarter of the text each, one pass a round, Adam with a cosine schedule. The vocabulary is that of
both Shakespeare files, so that the model also reads the roles. The work directory keeps
`model.safetensors`.

Command:   python -m launch.train --config=configs/tinyshakespeare_pretrain.py \
               --workdir=runs/tinyshakespeare
Data:      tinyshakespeare.txt in FEDJAX_HET_DATA
Results:   43.5 % of the symbols of the last twentieth of the text, perplexity 6.87 (seed 0);
           2 CPU cores, 5 minutes.
"""

from ml_collections import ConfigDict

from fedjax_het.data.sources.text import ROLES_VOCABULARY, TINY_VOCABULARY


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {
                "source": "tinyshakespeare",
                "vocabulary": "".join(sorted({*ROLES_VOCABULARY, *TINY_VOCABULARY})),
                "window": 80,
                "test_fraction": 0.05,
                "num_clients": 4,
                "partition": {"name": "contiguous"},
                "seed": 0,
            },
            "model": {"name": "transformer", "layers": 3, "width": 96, "heads": 4, "hidden": 192},
            "objective": {"name": "next_token"},
            "fleet": {"name": "uniform"},
            "algorithm": {
                "name": "fedavg",
                "client_optimizer": "adam",
                "learning_rate": 0.003,
                "schedule": "cosine",
                "decay_rounds": 5,
                "clip_norm": 1.0,
                "batch_size": 16,
            },
            "run": {"rounds": 5, "seed": 0},
        }
    )

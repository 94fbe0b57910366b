"""The published methods, and the registry that finds them by name."""

from fedjax_het.algorithms.adel import adel, adel_drop, adel_wait, salf
from fedjax_het.algorithms.asynchronous import fedasync, fedbuff, fedfix
from fedjax_het.algorithms.depthfl import depthfl
from fedjax_het.algorithms.dtfl import dtfl
from fedjax_het.algorithms.fedat import fedat
from fedjax_het.algorithms.fedavg import drop_stragglers, fedavg, fedprox
from fedjax_het.algorithms.feddrop import feddrop
from fedjax_het.algorithms.feddyn import feddyn
from fedjax_het.algorithms.fedel import fedel
from fedjax_het.algorithms.fedgkt import fedgkt
from fedjax_het.algorithms.fednova import fednova
from fedjax_het.algorithms.fedopt import fedadam, fedopt, fedyogi
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.algorithms.fedrolex import fedrolex
from fedjax_het.algorithms.fiarse import fiarse
from fedjax_het.algorithms.fjord import fjord
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.algorithms.prfl import nested_mask_sync, prfl, prfl_fedasyn, prfl_fedfix
from fedjax_het.algorithms.pyramidfl import pyramidfl
from fedjax_het.algorithms.registry import (
    ALGORITHMS,
    SHARED_OPTIONS,
    TRAINING_OPTIONS,
    build,
    default_options,
    option_names,
    register,
    resolved_options,
)
from fedjax_het.algorithms.scaffold import scaffold
from fedjax_het.algorithms.scalefl import scalefl
from fedjax_het.algorithms.splitfed import splitfed
from fedjax_het.algorithms.sub_fedavg import sub_fedavg
from fedjax_het.algorithms.timelyfl import timelyfl

__all__ = [
    "ALGORITHMS",
    "SHARED_OPTIONS",
    "TRAINING_OPTIONS",
    "adel",
    "adel_drop",
    "adel_wait",
    "build",
    "default_options",
    "depthfl",
    "drop_stragglers",
    "dtfl",
    "fedadam",
    "fedasync",
    "fedat",
    "fedavg",
    "fedbuff",
    "feddrop",
    "feddyn",
    "fedel",
    "fedfix",
    "fedgkt",
    "fednova",
    "fedopt",
    "fedpmt",
    "fedprox",
    "fedrolex",
    "fedyogi",
    "fiarse",
    "fjord",
    "heterofl",
    "nested_mask_sync",
    "option_names",
    "prfl",
    "prfl_fedasyn",
    "prfl_fedfix",
    "pyramidfl",
    "register",
    "resolved_options",
    "salf",
    "scaffold",
    "scalefl",
    "splitfed",
    "sub_fedavg",
    "timelyfl",
]

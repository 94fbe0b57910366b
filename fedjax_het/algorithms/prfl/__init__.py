"""PR-FL: pruning by time, recovery by early stopping, and buffers merged mask by mask.

`prfl` is the method, and the baselines as its author ran them, named apart from the published
methods. `ranking` says which weights a client trains, `density` how many, `links` what it costs and
when the server merges, `merging` how, over the uploads in `buffers`; `controller` is what the
server does when an interval ends.
"""

from fedjax_het.algorithms.prfl.buffers import Memory
from fedjax_het.algorithms.prfl.density import Density, Recovery
from fedjax_het.algorithms.prfl.links import Links
from fedjax_het.algorithms.prfl.merging import Arrivals, Merge
from fedjax_het.algorithms.prfl.prfl import nested_mask_sync, prfl, prfl_fedasyn, prfl_fedfix

__all__ = [
    "Arrivals",
    "Density",
    "Links",
    "Memory",
    "Merge",
    "Recovery",
    "nested_mask_sync",
    "prfl",
    "prfl_fedasyn",
    "prfl_fedfix",
]

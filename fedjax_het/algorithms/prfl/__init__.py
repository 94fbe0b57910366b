"""PR-FL: pruning by time, recovery by early stopping, and a masked merge of buffers.

`prfl` has the method and the baselines of its author, whose names differ from those of the
published methods. `ranking` determines the weights that a client trains and `density` their number.
`links` has the costs and the times of merges, `merging` the merge of the uploads in `buffers`, and
`controller` the actions of the server at the end of an interval.
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

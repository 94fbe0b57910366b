"""FedNova's merge, for any method that merges by the mean."""

from fedjax_het.common.errors import require
from fedjax_het.contract.aggregation import normalised_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.transforms.compose import Transformation


def normalised() -> Transformation:
    """Updates are normalised by the number of local steps of each client (FedNova).

    See `contract.aggregation.normalised_mean`. The steps are those that count: under a deadline
    that keeps partial work, those that the client finished.

    Raises:
      InputError: for a method that merges by another rule than the mean, and for one whose uploads
        add noise to the sum of the updates, which is another sum here.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """

    def transformation(algorithm: Algorithm) -> Algorithm:
        require(
            algorithm.merge.mean,
            f"server.normalised of {algorithm.name}",
            "normalises the mean of the updates, and this method merges by a rule of its own",
            "use a method that merges by the mean (fedavg, fedpmt)",
        )
        noisy = [upload.name for upload in algorithm.uploads if upload.noise is not None]
        require(
            not noisy,
            f"server.normalised of {algorithm.name} with {', '.join(noisy)}",
            "adds noise to the mean of the updates, which this merge replaces",
            "leave one of them out",
        )
        options = algorithm.options or {}
        options = {**options, "server": [*options.get("server", ()), {"name": "normalised"}]}
        return algorithm._replace(merge=normalised_mean(), options=options)

    return transformation

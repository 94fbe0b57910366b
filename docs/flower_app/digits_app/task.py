"""What the server and every device have in common: the problem and the method that won on it."""

import numpy as np

import fedjax_het as fh

data = fh.data.load_federated("digits", partition=fh.data.dirichlet(2, alpha=1.0), seed=0)
model = fh.models.build("mlp", data.input_shape, data.num_classes, hidden=(32, 16))
# The speeds that were measured on the two devices, in training; see docs/fleets.md.
fleet = fh.fleet.Fleet(flops_per_s=np.asarray([4e6, 9e6]))
problem = fh.Problem(model, data, fleet)
method = fh.algorithms.fedpmt(problem, learning_rate=0.1, batch_size=32)

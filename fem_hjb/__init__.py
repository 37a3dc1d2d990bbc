"""fem_hjb: exact finite-element references and variational learning for linearly solvable stochastic control."""

__version__ = "0.1.0"

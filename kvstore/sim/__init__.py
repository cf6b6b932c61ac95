"""The ports, imagined: a whole cluster from a seed (docs/simulation.md)."""

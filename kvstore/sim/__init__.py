"""The ports, imagined: a whole cluster from a seed."""

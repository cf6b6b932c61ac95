"""Applications over the public client: each a package of its own, each an optional extra."""

"""The `kv` command."""

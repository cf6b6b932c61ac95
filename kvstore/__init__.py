"""kvstore: a replicated key-value store you can read, run on three machines, and trust."""

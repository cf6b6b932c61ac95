"""Short links over the public client: pure parts, a library, and a web service."""

"""MessagePack-RPC as pure state machines: the only home of msgpack."""

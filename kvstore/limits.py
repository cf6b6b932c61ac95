"""Every limit of the system in one place, with its reason and its relations.

Sizes in bytes, times in milliseconds unless the name says otherwise. A limit that
users may move has its option in `kvstore.config`; the number here is then the default.
"""

from __future__ import annotations

# --- keys and values -----------------------------------------------------------------
KEY_BYTES_MAX = 480
"""LMDB keys end at 511 bytes; two go to the partition prefix, the rest is kept for suffixes."""
VALUE_BYTES_MAX = 1 << 20
"""Default ceiling of one value. One value is one message, one log record, one stall."""
VALUE_BYTES_CEILING = 8 << 20
"""What configuration may raise it to; the frame limit below must stay above it."""
EXPIRES_MS_MAX = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last instant Python and most clients can print."""
BATCH_KEYS_MAX = 1_000
"""Keys in one get_many, put_many or delete_many call; clients cut longer ones."""
SCAN_LIMIT_MAX = 1_000
"""Entries in one page of a scan."""
SCAN_PAGE_BYTES_MAX = 1 << 20
"""Bytes of values in one page of a scan: a page must not stall the loop."""
SCAN_STEP_KEYS_MAX = 2_000
"""Keys one replica looks at for one page, live or not, so that no page grows with dead keys."""

# --- ring ----------------------------------------------------------------------------
SLOTS = 16_384
"""Redis Cluster's number, so that its clients know our ring."""
PARTITIONS = 256
"""Default Q; a power of two, fixed when a cluster is born."""
PARTITIONS_MAX = 16_384
NODES_MAX = 1_024
"""Ten bits of a version name the node."""
REPLICAS = 3
REPLICAS_MAX = 7
"""More copies than this slow every write and make no promise stronger."""

# --- clocks --------------------------------------------------------------------------
DRIFT_MS_MAX = 500
"""How far a version may run ahead of the wall clock of whoever meets it."""

# --- wire ----------------------------------------------------------------------------
FRAME_BYTES_MAX = 12 << 20
"""One message. Above VALUE_BYTES_CEILING plus key, record header and envelope."""
FRAME_BYTES_BEFORE_HELLO = 16 << 10
"""Nobody who has not said hello may make us hold more."""
ARRAY_ITEMS_MAX = 16_384
"""Elements of one array; a peer batch holds two per record."""
ARRAY_ITEMS_BEFORE_HELLO = 16
"""A header alone makes the unpacker reserve room; a stranger may not make it reserve much."""
MAP_ITEMS_MAX = 1_024
STRING_BYTES_MAX = 64 << 10
"""Text (method names, option names, messages); values and keys are binary."""
NESTING_MAX = 16
"""Our deepest message nests five levels."""
HELLO_TIMEOUT_MS = 5_000
"""From connect to a valid hello; also how long half a frame may wait for its other half."""
CONNECTIONS_MAX = 4_096
IN_FLIGHT_PER_CONNECTION_MAX = 4_096
"""Requests one connection may have unanswered; more is `overloaded`."""
CLIENT_IN_FLIGHT_MAX = 1_024
"""Calls our own client has unanswered on one connection; others wait their turn. Below the node's limit."""
IN_FLIGHT_MAX = 32_768
"""Requests one node coordinates at a time; more is `overloaded`."""
OUTPUT_BYTES_PAUSE = 1 << 20
"""Unsent bytes to one connection at which we stop reading from it."""
OUTPUT_BYTES_MAX = 32 << 20
"""Unsent bytes at which a client that does not read is cut off; above FRAME_BYTES_MAX."""
OUTPUT_STALL_MS = 5_000
"""Who has so many unsent bytes and took none of them for so long does not read."""
OUTPUT_BYTES_CEILING = 128 << 20
"""Unsent bytes at which one that reads too slowly is cut off as well: our memory is not its buffer."""
ANSWER_BYTES_MAX = 3 << 20
"""Bytes of values at which an answer about many keys ends; with one more of the largest it fits a frame."""

# --- peers ---------------------------------------------------------------------------
PEER_BATCH_RECORDS_MAX = 4_000
"""Records in one peer message; two array items each, so below ARRAY_ITEMS_MAX / 2."""
PEER_BATCH_VOTES_MAX = 2_000
"""Votes asked in one peer message; three array items each."""
PEER_BATCH_BYTES_MAX = 2 << 20
"""Bytes at which a peer batch is closed and another one begun; answers have ANSWER_BYTES_MAX."""
PEER_IN_FLIGHT_MAX = 1_024
"""Unanswered messages to one peer; more fails the replica at once instead of queueing."""
PEER_OUTPUT_BYTES_MAX = 64 << 20
"""Unsent bytes to one peer at which it counts as down for new work."""
PROBE_INTERVAL_MS = 1_000
"""Heartbeat on an existing link."""
PROBE_TIMEOUT_MS = 3_000
"""Silence on a link after which the peer counts as down."""
RECONNECT_MS_MIN = 50
RECONNECT_MS_MAX = 2_000

# --- deadlines -----------------------------------------------------------------------
TIMEOUT_MS = 5_000
"""A call's deadline when the caller names none."""
TIMEOUT_MS_MAX = 600_000

# --- storage -------------------------------------------------------------------------
SEGMENT_BYTES = 64 << 20
"""One file of the write-ahead log."""
MEMTABLE_BYTES = 32 << 20
"""At this size the memtable is frozen and flushed. It bounds replay at start as well."""
DISK_RESERVE_RATIO = 0.05
DISK_RESERVE_BYTES_MAX = 5 << 30
"""Free space kept for repair, expiry and deletes: the smaller of the two."""
EXPIRY_KEYS_PER_TICK = 500
"""Expired keys reclaimed in one step, so that a million at once do not stop the loop."""

assert FRAME_BYTES_MAX > VALUE_BYTES_CEILING + KEY_BYTES_MAX + 4_096
assert FRAME_BYTES_MAX > ANSWER_BYTES_MAX + VALUE_BYTES_CEILING + BATCH_KEYS_MAX * KEY_BYTES_MAX
assert FRAME_BYTES_MAX > PEER_BATCH_BYTES_MAX + VALUE_BYTES_CEILING + PEER_BATCH_VOTES_MAX * KEY_BYTES_MAX
assert OUTPUT_BYTES_CEILING > OUTPUT_BYTES_MAX > FRAME_BYTES_MAX
assert 2 * PEER_BATCH_RECORDS_MAX < ARRAY_ITEMS_MAX
assert CLIENT_IN_FLIGHT_MAX < IN_FLIGHT_PER_CONNECTION_MAX

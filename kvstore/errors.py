"""One tree of errors; each says whether it is definite, and what to do.

    KVError
      Refused            definite: it did not happen and never will
        BadRequest         the call itself is wrong: BadKey BadValue BadTtl BadConsistency BadOption
        ProtocolError      the bytes are wrong: Malformed FrameTooLarge UnknownMethod
                           ProtocolMismatch WrongCluster HelloRequired AuthFailed
        NotNow             try again, perhaps elsewhere: Overloaded NotReady TooLate Unavailable
                           DiskFull ClockSkew ClockUnknown StaleEpoch CannotConnect
                           NoMajority Contended Amnesiac
        Unsupported NeedsRegister Conflict UnsafeRegisters NotANumber Cancelled LockTaken NotACounter
        StartError         a node cannot start: ConfigInvalid PortInUse DataDirInUse
                           DataDirForeign DataDirFormat DataDirUnusable CorruptLog
      Unresolved         indefinite: it may have happened, or may yet
        QuorumTimeout DeadlineExceeded ConnectionLost Crashed DamagedRecord BatchFailed Forgotten

An error is built from named fields and makes its own sentence from them, so that it says the
same on both ends of a connection: the wire carries `[name, message, fields]`. When in doubt an
error is `Unresolved`; that is always safe. The table in docs/protocol.md is generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class KVError(Exception):
    """Base of all. Class attributes are the error table; instances carry `fields`."""

    code: ClassVar[str] = "KV-X00"
    """Stable and greppable; `kv explain CODE` says more."""
    name: ClassVar[str] = "error"
    """The word on the wire."""
    definite: ClassVar[bool] = False
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed when tried again, perhaps at another node."""
    http: ClassVar[int] = 500
    resp: ClassVar[str] = "ERR"
    exit_status: ClassVar[int] = 3
    """What `kv` exits with."""
    template: ClassVar[str] = "{message}"
    remedy: ClassVar[str] = ""

    def __init__(self, /, **fields: Any) -> None:
        self.fields: dict[str, Any] = fields
        try:
            sentence = self.template.format_map(fields)
        except (KeyError, IndexError, ValueError, RecursionError):  # fields from another version of ourselves
            sentence = str(fields.get("message", self.name))
        super().__init__(sentence)

    @property
    def message(self) -> str:
        """What was needed and what was got, in one sentence."""
        return str(self.args[0])

    def one_line(self) -> str:
        """The whole error as a user sees it: code, sentence, remedy."""
        text = f"error[{self.code}]: {self.message}"
        return f"{text}. Try: {self.remedy}" if self.remedy else text

    def to_wire(self) -> list[Any]:
        """`[name, message, fields]` with fields that msgpack can carry."""
        plain = {
            k: v for k, v in self.fields.items() if isinstance(v, str | int | float | bool | bytes | list)
        }
        return [self.name, self.message, plain]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[KVError], fields: Mapping[str, Any]) -> KVError:
    return kind(**fields)


class Refused(KVError):
    """Definite: it did not happen and never will. Safe to try again."""

    name = "refused"
    code = "KV-X01"
    definite = True


class Unresolved(KVError):
    """Indefinite: it may have happened, or may yet. Try again only what is safe to repeat.

    Of a linearizable change, `operation` names it: `await kv.resolve(error.operation)` makes it a fact.
    """

    operation: Any = None
    """A `kvstore.Operation`, or None."""
    name = "unresolved"
    code = "KV-X02"
    http = 504
    exit_status = 4


# --- the call is wrong ------------------------------------------------------------------


class BadRequest(Refused):
    """The arguments are wrong; the same call will never succeed."""

    name = "bad_request"
    code = "KV-A00"
    http = 400
    exit_status = 2


class BadKey(BadRequest):
    """Fields: length, maximum."""

    name = "bad_key"
    code = "KV-A01"
    template = "a key has 1 to {maximum} bytes, this one has {length}"
    remedy = "use a shorter key, or its hash as the key"


class BadValue(BadRequest):
    """Fields: length, maximum."""

    name = "bad_value"
    code = "KV-A02"
    http = 413
    template = "a value has at most {maximum} bytes here, this one has {length}"
    remedy = "split the value, or raise value_bytes_max (up to 8 MiB) on every node"


class BadTtl(BadRequest):
    """Fields: given."""

    name = "bad_ttl"
    code = "KV-A03"
    template = "a ttl is a positive time that ends before the year 10000, got {given}"
    remedy = "give seconds above 0, as 90, 1.5 or on the command line 90s, 15m, 12h, 7d"


class BadConsistency(BadRequest):
    """Fields: given, allowed."""

    name = "bad_consistency"
    code = "KV-A04"
    template = "consistency {given} is not possible here; allowed: {allowed}"
    remedy = "one, quorum, all, or r and w from 1 to the number of replicas"


class BadOption(BadRequest):
    """Fields: option, given, allowed."""

    name = "bad_option"
    code = "KV-A05"
    template = "{option} cannot be {given}; allowed: {allowed}"
    remedy = "see the reference of the call or command"


class WrongLoop(BadRequest):
    """A client in an event loop, or a lock in a process, that did not make it."""

    name = "wrong_loop"
    code = "KV-A06"
    template = "it belongs to the event loop and the process that made it, and this is another one"
    remedy = "connect in the loop that uses it, and after a fork in the child"


# --- the bytes are wrong ----------------------------------------------------------------


class ProtocolError(Refused):
    """The connection speaks wrongly; it is closed after the answer."""

    name = "protocol_error"
    code = "KV-P00"
    http = 400


class Malformed(ProtocolError):
    """Fields: reason."""

    name = "malformed"
    code = "KV-P01"
    template = "not a message of this protocol: {reason}"
    remedy = "check that a kvstore client of a matching version talks to this port"


class FrameTooLarge(ProtocolError):
    """Fields: maximum."""

    name = "frame_too_large"
    code = "KV-P02"
    http = 413
    template = "a message holds at most {maximum} bytes here"
    remedy = "send smaller values or fewer keys a call"


class UnknownMethod(Refused):
    """Fields: method."""

    name = "unknown_method"
    code = "KV-P03"
    http = 404
    template = "this node knows no method {method}"
    remedy = "upgrade the node, or use a client of its version"


class ProtocolMismatch(ProtocolError):
    """Fields: offered, supported."""

    name = "protocol_mismatch"
    code = "KV-P04"
    template = "no common protocol version: offered {offered}, supported {supported}"
    remedy = "upgrade the older side"


class WrongCluster(ProtocolError):
    """Fields: expected, got."""

    name = "wrong_cluster"
    code = "KV-P05"
    http = 421
    template = "this node belongs to cluster {expected}, the caller asked for {got}"
    remedy = "check the address; two clusters never exchange data"


class HelloRequired(ProtocolError):
    """Fields: method."""

    name = "hello_required"
    code = "KV-P06"
    template = "the first call on a connection is hello, got {method}"
    remedy = "call hello first"


class AuthFailed(ProtocolError):
    """No fields: the reason would help only an attacker."""

    name = "auth_failed"
    code = "KV-P07"
    http = 401
    resp = "WRONGPASS"
    template = "the token is missing or wrong"
    remedy = "set KV_TOKEN or KV_TOKEN_FILE to the cluster's client token"


# --- not now ----------------------------------------------------------------------------


class NotNow(Refused):
    """Nothing is wrong with the call; the node cannot take it now."""

    name = "not_now"
    code = "KV-O00"
    retryable = True
    http = 503
    resp = "TRYAGAIN"


class Overloaded(NotNow):
    """Fields: what, maximum, retry_after_ms."""

    name = "overloaded"
    code = "KV-O01"
    http = 429
    template = "the node is at its limit of {maximum} {what}"
    remedy = "slow down and try again in a moment; more nodes take more load"


class NotReady(NotNow):
    """Fields: reason."""

    name = "not_ready"
    code = "KV-O02"
    resp = "LOADING"
    template = "the node does not serve now: {reason}"
    remedy = "try another node; `kv status` shows which are ready"


class TooLate(NotNow):
    """Fields: late_ms. The request waited somewhere past its deadline; it was dropped, not done."""

    name = "too_late"
    code = "KV-O03"
    http = 504
    template = "the request arrived {late_ms} ms after its deadline and was dropped"
    remedy = "the client repeats by itself; if it lasts, look for a slow network or a node that stands still"


class Unavailable(NotNow):
    """Fields: operation, needed, alive, down. Nothing was sent to anybody."""

    name = "unavailable"
    code = "KV-Q01"
    resp = "CLUSTERDOWN"
    exit_status = 5
    template = "{operation} needs {needed} replicas, {alive} can be reached (down: {down})"
    remedy = "kv status shows the nodes; start those that are down, or ask for a lower consistency"


class NoMajority(NotNow):
    """Fields: operation. No majority promised in time, so the change was never sent."""

    name = "no_majority"
    code = "KV-Q03"
    resp = "CLUSTERDOWN"
    exit_status = 5
    template = "{operation}: no majority of the key's owners took part in time; nothing was changed"
    remedy = "kv status shows the nodes; a longer --timeout waits for more rounds"


class DiskFull(NotNow):
    """Fields: free, reserve."""

    name = "disk_full"
    code = "KV-D01"
    http = 507
    resp = "OOM"
    template = "the disk has {free} bytes left, {reserve} are kept in reserve"
    remedy = "free or add space; deletes and expiry still work, and writes come back by themselves"


class ClockSkew(NotNow):
    """Fields: ahead_ms, maximum."""

    name = "clock_skew"
    code = "KV-T01"
    template = (
        "clocks disagree: a version is {ahead_ms} ms ahead of this node's clock, {maximum} ms are allowed"
    )
    remedy = "check time synchronisation (chrony, ntpd) on the nodes; reads go on meanwhile"


class ClockUnknown(ClockSkew):
    """No fields. Just started, and no peer's clock has been seen: ours may be anything."""

    name = "clock_unknown"
    code = "KV-T02"
    template = "this node has just started and has not compared its clock with another node's yet"
    remedy = "try again in a second, or another node"


class Amnesiac(NotNow):
    """Fields: node. A node came back with less than it had told its peers it would keep."""

    name = "amnesiac"
    code = "KV-D04"
    template = "{node} has forgotten what it promised: its peers know of more than its data holds"
    remedy = "stop it and give it its newest data directory back; with older data it must not take part"


class StaleEpoch(NotNow):
    """Fields: theirs, ours."""

    name = "stale_epoch"
    code = "KV-M01"
    template = "the topology moved on: the request has epoch {theirs}, this node {ours}"
    remedy = "the client fetches the topology and repeats by itself"


class CannotConnect(NotNow):
    """Fields: address, reason. Nothing was sent."""

    name = "cannot_connect"
    code = "KV-N01"
    exit_status = 4
    template = "no connection to {address}: {reason}"
    remedy = "is a node running there? `kv up` starts a cluster; --url or KV_URL names another"


# --- not possible -----------------------------------------------------------------------


class Unsupported(Refused):
    """Fields: what."""

    name = "unsupported"
    code = "KV-R01"
    http = 501
    template = "{what} is not available in this version"
    remedy = "see CHANGELOG.md for what each version brings"


class NeedsRegister(Refused):
    """Fields: none. A plain write met a linearizable key."""

    name = "needs_register"
    code = "KV-R02"
    http = 409
    template = "the key is a linearizable register; a plain write may not replace it"
    remedy = "write it with consistency=linearizable"


class Conflict(Refused):
    """Fields: expected, got."""

    name = "conflict"
    code = "KV-R03"
    http = 409
    exit_status = 6
    template = "the key changed meanwhile: expected {expected}, found {got}"
    remedy = "read again and repeat the change"


class UnsafeRegisters(Refused):
    """No fields. A node that could forget its promises takes no part in linearizable calls."""

    name = "unsafe_registers"
    code = "KV-R04"
    http = 409
    template = "linearizable calls need nodes that sync before they answer; this one does not"
    remedy = 'set sync = "always" and the lmdb engine on every node, or unsafe_registers for tests'


class NotANumber(Refused):
    """Fields: key, found. An increment met a value that is no integer."""

    name = "not_a_number"
    code = "KV-R05"
    http = 409
    template = "{key} holds {found}, not an integer"
    remedy = "increments work on keys that hold a decimal integer, or nothing"


class NotACounter(Refused):
    """No fields. `counter_add` met a value that was put there."""

    name = "not_a_counter"
    code = "KV-R10"
    http = 409
    template = "the key holds a value, not a counter"
    remedy = "delete it first, or count under another key"


class LockTaken(Refused):
    """Fields: name, key, waited."""

    name = "lock_taken"
    code = "KV-R08"
    http = 409
    exit_status = 1
    template = "lock {name} is held by somebody else; waited {waited}"
    remedy = "wait longer; `kv ttl lock:NAME` shows when the lease ends if it is not renewed"


class Contended(NotNow):
    """Fields: key, timeout_ms. Others kept changing the key between our read and our compare-and-set."""

    name = "contended"
    code = "KV-R09"
    http = 409
    exit_status = 6
    template = "{key} changed between every read and write within {timeout_ms} ms; nothing was changed"
    remedy = "a longer --timeout, or a change that the node computes, such as incr"


class Cancelled(Refused):
    """Fields: operation. Somebody asked what became of it before it arrived; so it was ended."""

    name = "cancelled"
    code = "KV-R06"
    http = 409
    template = "operation {operation} was resolved as never applied before this try arrived"
    remedy = "repeat the call as a new operation"


# --- a node cannot start ----------------------------------------------------------------


class StartError(Refused):
    """A node or command cannot begin; nothing was touched."""

    name = "start_error"
    code = "KV-C00"


class ConfigInvalid(StartError):
    """Fields: where, problem, hint."""

    name = "config_invalid"
    code = "KV-C01"
    exit_status = 2
    template = "{where}: {problem}"
    remedy = "{hint}"

    def one_line(self) -> str:
        """The remedy is particular to each mistake."""
        hint = self.fields.get("hint", "")
        text = f"error[{self.code}]: {self.message}"
        return f"{text}. Try: {hint}" if hint else text


class PortInUse(StartError):
    """Fields: address."""

    name = "port_in_use"
    code = "KV-C02"
    template = "{address} is taken by another process"
    remedy = "stop that process (`ss -ltnp` shows it) or choose another port"


class DataDirInUse(StartError):
    """Fields: path."""

    name = "data_dir_in_use"
    code = "KV-C03"
    template = "{path} is in use by another node process"
    remedy = "stop that node (`kv down`) or give each node its own directory"


class DataDirForeign(StartError):
    """Fields: path, expected, found."""

    name = "data_dir_foreign"
    code = "KV-C04"
    template = "{path} belongs to {found}, this node is {expected}"
    remedy = "point data_dir at the right directory; never copy one between nodes"


class DataDirFormat(StartError):
    """Fields: path, found, supported."""

    name = "data_dir_format"
    code = "KV-C05"
    template = "{path} has data format {found}, this version reads {supported}"
    remedy = "run the version that wrote it, or upgrade as docs/operations.md says"


class DataDirUnusable(StartError):
    """Fields: path, reason."""

    name = "data_dir_unusable"
    code = "KV-C06"
    template = "{path} cannot be used: {reason}"
    remedy = "check that it exists, belongs to this user, and its disk is healthy and writable"


class CorruptLog(StartError):
    """Fields: path, offset, reason."""

    name = "corrupt_log"
    code = "KV-D02"
    template = "{path} is damaged at byte {offset}: {reason}; acknowledged writes may be missing here"
    remedy = "do not cut it by hand: `kv wal verify DIR` shows the extent, docs/operations.md what to do"


# --- indefinite -------------------------------------------------------------------------


class DamagedRecord(Unresolved):
    """Fields: key. What a replica's base store holds under a key is not what was put there."""

    name = "damaged_record"
    code = "KV-D03"
    template = "the record of key {key} is damaged on this node's disk"
    remedy = "the other replicas have it: rebuild the node as docs/operations.md says"


class QuorumTimeout(Unresolved):
    """Fields: operation, needed, acked, missing."""

    name = "quorum_timeout"
    code = "KV-Q02"
    retryable = True
    resp = "TRYAGAIN"
    exit_status = 5
    template = "{operation} needs {needed} replicas, {acked} answered in time (silent: {missing})"
    remedy = "read the key to see what holds; kv status shows the nodes"


class DeadlineExceeded(Unresolved):
    """Fields: timeout_ms."""

    name = "deadline_exceeded"
    code = "KV-N03"
    retryable = True
    template = "no answer within {timeout_ms} ms"
    remedy = "read the key to see what holds; a longer --timeout waits longer"


class ConnectionLost(Unresolved):
    """Fields: address, reason."""

    name = "connection_lost"
    code = "KV-N02"
    retryable = True
    http = 502
    template = "the connection to {address} broke before the answer: {reason}"
    remedy = "read the key to see what holds; a plain put is safe to repeat"


class Crashed(Unresolved):
    """Fields: reason."""

    name = "crashed"
    code = "KV-N04"
    retryable = True
    http = 500
    template = "the node is going down: {reason}"
    remedy = "look at the node's log; another node answers meanwhile"


class Forgotten(Unresolved):
    """Fields: operation. A retry so late that the key's window no longer remembers the first try."""

    name = "forgotten"
    code = "KV-R07"
    template = "nobody remembers any more whether operation {operation} was applied"
    remedy = "read the key to see what holds; retry sooner, within the last 128 changes of the key"


class BatchFailed(Unresolved):
    """Fields: failed, total, first. Some keys of a put_many or delete_many; the others are done.

    The client adds `receipts` (key to Receipt, what is done) and `failures` (key to KVError).
    """

    name = "batch_failed"
    code = "KV-N05"
    template = "{failed} of {total} keys failed; the first: {first}"
    remedy = "the error's `failures` has each key with its reason; the others are done"
    receipts: Mapping[Any, Any] = {}
    failures: Mapping[Any, KVError] = {}


def _family(kind: type[KVError]) -> list[type[KVError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _family(child))]


ALL: tuple[type[KVError], ...] = tuple(sorted(_family(KVError), key=lambda kind: kind.code))
"""Every error, by code."""
BY_NAME: Mapping[str, type[KVError]] = {kind.name: kind for kind in ALL}
BY_CODE: Mapping[str, type[KVError]] = {kind.code: kind for kind in ALL}
assert len(BY_NAME) == len(ALL) == len(BY_CODE), "an error name or code is used twice"


def from_wire(error: object) -> KVError:
    """Rebuild an error from `[name, message, fields]`; an unknown name is `Unresolved`."""
    match error:
        case [str() as name, str() as message, dict() as fields]:
            kind = BY_NAME.get(name, Unresolved)
            return kind(**{"message": message, **{str(k): v for k, v in fields.items()}})
        case _:
            return Unresolved(
                message=f"the peer answered with an error we cannot read ({type(error).__name__})"
            )

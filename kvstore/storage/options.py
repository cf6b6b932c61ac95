"""What a store can be told. `kvstore.config` fills it in; each field is documented there as well."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore import errors, limits
from kvstore.types import Durability

_SYNC_ALLOWED = "always, os, or interval:<milliseconds from 1 to 60000>"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Sizes in bytes. The defaults are those of `kvstore.limits`."""

    sync: str = "always"
    """When the log is synced: `always` before every answer, `interval:<ms>` at least that often,
    `os` when the operating system sees fit (a power cut then loses what it had not written)."""
    segment_bytes: int = limits.SEGMENT_BYTES
    """Size of one log file, reserved ahead of use."""
    memtable_bytes: int = limits.MEMTABLE_BYTES
    """Written bytes after which memory is moved to the base store. Bounds memory and replay."""
    disk_reserve_ratio: float = limits.DISK_RESERVE_RATIO
    disk_reserve_bytes_max: int = limits.DISK_RESERVE_BYTES_MAX
    """Free space below which client writes stop: the smaller of ratio times disk, and this."""
    expiry_keys_per_tick: int = limits.EXPIRY_KEYS_PER_TICK
    """Due keys looked at in one tick."""

    def __post_init__(self) -> None:
        _parse_sync(self.sync)
        if not 4_096 <= self.segment_bytes <= 1 << 30:
            raise errors.BadOption(option="segment_bytes", given=self.segment_bytes, allowed="4 KiB to 1 GiB")
        if not 1 <= self.memtable_bytes <= 1 << 32:
            raise errors.BadOption(
                option="memtable_bytes", given=self.memtable_bytes, allowed="1 byte to 4 GiB"
            )
        if not 0 <= self.disk_reserve_ratio < 1:
            raise errors.BadOption(
                option="disk_reserve_ratio", given=self.disk_reserve_ratio, allowed="0 up to, not with, 1"
            )
        if self.disk_reserve_bytes_max < 0:
            raise errors.BadOption(
                option="disk_reserve_bytes_max", given=self.disk_reserve_bytes_max, allowed="0 or more"
            )
        if self.expiry_keys_per_tick < 1:
            raise errors.BadOption(
                option="expiry_keys_per_tick", given=self.expiry_keys_per_tick, allowed="1 or more"
            )

    @property
    def durability(self) -> Durability:
        """What an acknowledgement of this store means."""
        return _parse_sync(self.sync)[0]

    @property
    def sync_interval_ms(self) -> int:
        """The longest time written data may stay unsynced; 0 when the mode has no interval."""
        return _parse_sync(self.sync)[1]


def _parse_sync(text: str) -> tuple[Durability, int]:
    match text.partition(":"):
        case ("always", "", ""):
            return Durability.ALWAYS, 0
        case ("os", "", ""):
            return Durability.OS, 0
        case ("interval", ":", digits) if (
            digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 60_000
        ):
            return Durability.INTERVAL, int(digits)
        case _:
            raise errors.BadOption(option="sync", given=text, allowed=_SYNC_ALLOWED)

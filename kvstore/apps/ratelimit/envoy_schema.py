"""The messages of Envoy's rate limit service, as far as they are used: same full names, same field numbers.

    envoy/service/ratelimit/v3/rls.proto, envoy/extensions/common/ratelimit/v3/ratelimit.proto,
    envoy/config/core/v3/base.proto

Fields that are not here are skipped by the decoder. The pool is our own, so that whoever has Envoy's whole
tree in the default pool keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import duration_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

METHOD: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
OK: Final = 1
OVER_LIMIT: Final = 2
UNITS_US: Final = {1_000_000: 1, 60_000_000: 2, 3_600_000_000: 3, 86_400_000_000: 4}
"""Periods that have a unit: second, minute, hour, day."""

_COMMON = "envoy.extensions.common.ratelimit.v3"
_CORE = "envoy.config.core.v3"
_SERVICE = "envoy.service.ratelimit.v3"
_RESPONSE = f".{_SERVICE}.RateLimitResponse"
_DESCRIPTOR = f".{_COMMON}.RateLimitDescriptor"

_Field = tuple[str, int, str]
"""Name, number, kind: a scalar, or the full name of a message; `*` before it: repeated; `=`: an enum."""


def _field(name: str, number: int, kind: str) -> FieldDescriptorProto:
    field = FieldDescriptorProto(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.startswith("*"):
        kind, field.label = kind[1:], FieldDescriptorProto.LABEL_REPEATED
    if kind.startswith("="):
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, kind[1:]
    elif kind.startswith("."):
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, kind
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    return field


def _message(
    name: str, *fields: _Field, inside: tuple[DescriptorProto, ...] = (), enums: dict[str, list[str]]
) -> DescriptorProto:
    return DescriptorProto(
        name=name,
        field=[_field(*field) for field in fields],
        nested_type=inside,
        enum_type=[
            EnumDescriptorProto(
                name=enum,
                value=[EnumValueDescriptorProto(name=each, number=at) for at, each in enumerate(names)],
            )
            for enum, names in enums.items()
        ],
    )


def _plain(name: str, *fields: _Field, inside: tuple[DescriptorProto, ...] = ()) -> DescriptorProto:
    return _message(name, *fields, inside=inside, enums={})


def _files() -> list[FileDescriptorProto]:
    descriptor = _plain(
        "RateLimitDescriptor",
        ("entries", 1, f"*{_DESCRIPTOR}.Entry"),
        ("hits_addend", 3, ".google.protobuf.UInt64Value"),
        inside=(_plain("Entry", ("key", 1, "string"), ("value", 2, "string")),),
    )
    request = _plain(
        "RateLimitRequest",
        ("domain", 1, "string"),
        ("descriptors", 2, f"*{_DESCRIPTOR}"),
        ("hits_addend", 3, "uint32"),
    )
    limit = _message(
        "RateLimit",
        ("requests_per_unit", 1, "uint32"),
        ("unit", 2, f"={_RESPONSE}.RateLimit.Unit"),
        ("name", 3, "string"),
        enums={"Unit": ["UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR"]},
    )
    status = _plain(
        "DescriptorStatus",
        ("code", 1, f"={_RESPONSE}.Code"),
        ("current_limit", 2, f"{_RESPONSE}.RateLimit"),
        ("limit_remaining", 3, "uint32"),
        ("duration_until_reset", 4, ".google.protobuf.Duration"),
    )
    response = _message(
        "RateLimitResponse",
        ("overall_code", 1, f"={_RESPONSE}.Code"),
        ("statuses", 2, f"*{_RESPONSE}.DescriptorStatus"),
        ("response_headers_to_add", 3, f"*.{_CORE}.HeaderValue"),
        ("request_headers_to_add", 4, f"*.{_CORE}.HeaderValue"),
        ("raw_body", 5, "bytes"),
        inside=(limit, status),
        enums={"Code": ["UNKNOWN", "OK", "OVER_LIMIT"]},
    )
    header = _plain("HeaderValue", ("key", 1, "string"), ("value", 2, "string"))
    service_needs = [
        "google/protobuf/duration.proto",
        *(f"kvstore/{each}.proto" for each in (_CORE, _COMMON)),
    ]
    return [
        _file(_CORE, header),
        _file(_COMMON, descriptor, needs=["google/protobuf/wrappers.proto"]),
        _file(_SERVICE, request, response, needs=service_needs),
    ]


def _file(package: str, *messages: DescriptorProto, needs: Sequence[str] = ()) -> FileDescriptorProto:
    return FileDescriptorProto(
        name=f"kvstore/{package}.proto",
        package=package,
        syntax="proto3",
        message_type=messages,
        dependency=needs,
    )


def _classes() -> tuple[Any, Any]:
    pool = DescriptorPool()
    for known in (duration_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for file in _files():
        pool.Add(file)
    request, response = (
        GetMessageClass(pool.FindMessageTypeByName(f"{_SERVICE}.{name}"))
        for name in ("RateLimitRequest", "RateLimitResponse")
    )
    return request, response


RateLimitRequest, RateLimitResponse = _classes()

"""What can be wrong with a request, as RFC 9457 problems. One tree; each class is one `type`.

    Problem
      BadUrl BadAlias BadField BadIdempotencyKey        422: the request itself is wrong
      NotSignedIn WrongOrigin                           401, 403
      NoSuchLink LinkGone                               404, 410
      AliasTaken KeyReused                              409, 422
      TooMany                                           429

A problem never tells what belongs to another owner: their links are `NoSuchLink`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Problem(Exception):
    """Base of all: `detail` is a sentence for people, `extra` are further members of the document."""

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "bad-request"
    title: ClassVar[str] = "The request is wrong"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    def document(self) -> dict[str, Any]:
        """The body of `application/problem+json`."""
        return {
            "type": f"urn:kvstore:shortener:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }


class BadUrl(Problem):
    """The target may not be linked to."""

    status, kind, title = 422, "bad-url", "This address cannot be shortened"


class BadAlias(Problem):
    """The alias may not be claimed by anybody."""

    status, kind, title = 422, "bad-alias", "This alias cannot be used"


class BadField(Problem):
    """Another field is wrong; `field` names it."""

    status, kind, title = 422, "bad-field", "A field is wrong"


class BadIdempotencyKey(Problem):
    """The header is no key."""

    status, kind, title = 422, "bad-idempotency-key", "The Idempotency-Key is wrong"


class KeyReused(Problem):
    """The key came with another request before."""

    status, kind, title = 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"


class NotSignedIn(Problem):
    """No API key, or an unknown one."""

    status, kind, title = 401, "not-signed-in", "An API key is needed"


class WrongOrigin(Problem):
    """A form that this site did not give out."""

    status, kind, title = 403, "wrong-origin", "The form came from somewhere else"


class NoSuchLink(Problem):
    """Nothing there, or nothing of this owner."""

    status, kind, title = 404, "no-such-link", "There is no such link"


class LinkGone(Problem):
    """It expired, or its clicks are used up."""

    status, kind, title = 410, "link-gone", "This link has ended"


class AliasTaken(Problem):
    """Somebody has it."""

    status, kind, title = 409, "alias-taken", "This alias is taken"


class TooMany(Problem):
    """The client made too many links; `retry_after` says when to come again, in seconds."""

    status, kind, title = 429, "too-many", "Too many links in a short time"

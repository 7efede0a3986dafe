"""The authentication method `trust`: accepts every `user_id`. For development, and behind an authenticating proxy."""

from __future__ import annotations

from chatws.chat.interfaces import Credentials, Identity

__all__ = ["TrustMethod"]


class TrustMethod:
    """Accept the `user_id` of the message."""

    name = "trust"
    required_credential = "user_id"
    verifies_identity = False

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether the message has a `user_id`."""
        return credentials.user_id is not None

    def authenticate(self, credentials: Credentials) -> Identity:
        """See `Method.authenticate`."""
        assert credentials.user_id is not None
        return Identity(user_id=credentials.user_id, method=self.name)

"""The key-value store of a cluster's head, in this process."""

from __future__ import annotations

import pytest

from nfnet_ray.cluster import mailbox


def fake_head(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Its values; registers and mailboxes use them from now on."""
    values: dict[str, bytes] = {}

    class Internals:
        get_value = staticmethod(values.get)

        @staticmethod
        def put_value(key: str, value: str) -> None:
            values[key] = value.encode()

        @staticmethod
        def put_first_value(key: str, value: str) -> None:
            values.setdefault(key, value.encode())

        @staticmethod
        def delete_value(key: str) -> None:
            values.pop(key, None)

        @staticmethod
        def delete_values(prefix: str) -> None:
            for key in [key for key in values if key.startswith(prefix)]:
                del values[key]

        @staticmethod
        def value_keys(prefix: str) -> list[str]:
            return [key for key in values if key.startswith(prefix)]

    monkeypatch.setattr(mailbox, "ray_internals", Internals)
    return values

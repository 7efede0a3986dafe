"""The connections of contacts and their agents, for benchmarks/run.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
from entrants import Workload

#: Signs the tokens of this benchmark, and of nothing else.
SECRET = "the-secret-of-the-tokens-in-the-benchmark"
#: Pages of a contact, each with a connection.
PAGES = 2
#: The settings of a chatws that admits contacts by their tokens.
SETTINGS = {"CHATWS_CONTACTS": "true", "CHATWS_AUTH_METHODS": "token", "CHATWS_SECRET": SECRET}


def contact_hellos(workload: Workload, directory: Path) -> dict[str, str]:
    """Write what each connection sends at first, and return the variables of the load client that name it.

    Contact i has conversation i, with `PAGES` connections. The agents share the conversations: each message reaches
    the contact's pages and one agent.
    """
    conversations = workload.contacts // PAGES
    agents = workload.connections - workload.contacts
    expires = int(time.time()) + 3600

    def hello(role: str, number: int, subscriptions: list[int]) -> str:
        claims = {"sub": str(number), "role": role, "exp": expires}
        if role == "contact":
            claims["conversations"] = subscriptions
        messages: list[dict[str, object]] = [{"type": "auth", "token": jwt.encode(claims, SECRET, algorithm="HS256")}]
        messages += [{"type": "subscribe", "conversation_id": conversation} for conversation in subscriptions]
        return "\t".join(json.dumps(message) for message in messages)

    lines = [hello("contact", number // PAGES, [number // PAGES]) for number in range(workload.contacts)]
    lines += [hello("agent", number, list(range(number, conversations, agents))) for number in range(agents)]
    path = directory / "hellos"
    path.write_text("\n".join(lines) + "\n")
    return {"HELLOS": str(path), "GROUPS": str(conversations)}

"""Two nodes on one Redis: real processes, a push to one and a browser on the other."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Callable

from tests.e2e.conftest import Server
from tests.e2e.wire import until
from tests.redis import RedisServer
from tests.requirements import needs

pytestmark = needs("redis-server")

Start = Callable[..., Server]


def is_ready(server: Server) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def test_two_nodes_are_one_chat(chatws_server: Start) -> None:
    redis = RedisServer(persistent=True)
    try:
        redis.start()
        settings = ("--broker", redis.url, "--broker-timeout", "10", "--presence-ttl", "2", "--presence-grace", "0.2")
        node, other = (chatws_server(*settings) for _ in range(2))
        with node.backend() as backend, other.browser() as browser, node.browser() as agent:
            browser.auth(1)
            browser.subscribe(7)
            agent.auth(5)
            assert browser.expect("agent_status", agent_id=5)["data"]["status"] == "online"

            # a push to one reaches the browser on the other, once, in order with the next
            first = backend.push("new_message", {"conversation_id": 7, "n": 1}, id="m1")
            assert backend.request({"event": "new_message", "data": {"conversation_id": 7, "n": 1}, "id": "m1"})[
                "duplicate"
            ]
            backend.push("new_message", {"conversation_id": 7, "n": 2})
            assert browser.expect("new_message")["data"]["n"] == 1
            message = browser.expect("new_message")
            assert message["data"]["n"] == 2
            assert message["id"].partition(":")[0] == first["event_id"].partition(":")[0]

            # Redis dies and comes back: refused meanwhile, and then the browser, still there, gets what is pushed
            redis.kill()
            until(lambda: not is_ready(node) and not is_ready(other), "the nodes to say that they are not ready")
            refused = backend.request({"event": "new_message", "data": {"conversation_id": 7, "n": 3}})
            assert (refused["ok"], refused["code"]) == (False, "unavailable")
            redis.start()
            until(lambda: is_ready(node) and is_ready(other), "the nodes to be ready again")
            last = backend.push("new_message", {"conversation_id": 7, "n": 4})
            assert browser.expect("new_message")["data"]["n"] == 4

            # who comes back to the other node recovers there
            with node.browser() as third:
                third.auth(3)
                third.send({"type": "subscribe", "conversation_id": 7, "last_event_id": message["id"]})
                assert third.expect("subscribed")["data"]["recovered"] is True
                assert third.expect("new_message")["id"] == last["event_id"]

            # the node of agent 5 dies without a word
            node.stop(signal.SIGKILL)
            assert browser.expect("agent_status", agent_id=5)["data"]["status"] == "offline"
            assert [event["data"]["n"] for event in browser.received if event.get("event") == "new_message"] == [
                1,
                2,
                4,
            ]
    finally:
        redis.close()

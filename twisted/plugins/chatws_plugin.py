"""`twistd chatws`: found by Twisted wherever chatws is installed."""

from typing import Any

from twisted.application.service import ServiceMaker


class _ChatwsMaker(ServiceMaker):
    @property
    def options(self) -> Any:
        # twistd asks when `chatws` is on its command line, and this is the first that chatws hears of it
        from chatws.runtime.signals import process_signals

        process_signals.install()
        return super().options


chatws = _ChatwsMaker("chatws", "chatws.cli.twistd", "A WebSocket server for customer-service chat.", "chatws")

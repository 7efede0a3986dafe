"""`twistd chatws`: found by Twisted wherever chatws is installed."""

from twisted.application.service import ServiceMaker

chatws = ServiceMaker("chatws", "chatws.tap", "A WebSocket server for customer-service chat.", "chatws")

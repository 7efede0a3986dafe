"""`twistd chatws`: found by Twisted wherever chatws is installed."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

chatws = ServiceMaker("chatws", "chatws.tap", "A WebSocket server for customer-service chat.", "chatws")

uvloop = Reactor("uvloop", "chatws.uvloop_reactor", "asyncio on uvloop, which chatws[uvloop] brings")

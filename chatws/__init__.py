"""chatws: a real-time WebSocket server for customer-service chat."""

__version__ = "0.1.0"

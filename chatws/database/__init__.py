"""The shop's own database: asked who may enter and who may read. Never the log of events (that is a broker's)."""

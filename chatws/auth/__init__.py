"""Who is calling, and what they may read: what chatws.chat.contracts asks for."""

"""Authentication (which user a connection belongs to) and authorization (which conversations that user may read).

- `chain` tries the methods of `--auth` in order. `token`, `callback`, `database` and `trust` are one method each.
- `authorizer` answers whether a user may read a conversation, with the operator's `conversation_query`.
- `activity` writes heartbeats and activities to the database, in batches.
- `cache`, `exists_query`, `fair_queue` and `refusals` keep bursts of connections away from the database.
- `factory` builds all of them from the settings.

The package implements `Authenticator`, `Authorizer` and `ActivitySink` of `chatws.chat.interfaces`. If a check cannot
be performed, access is denied with `Unavailable`.
"""

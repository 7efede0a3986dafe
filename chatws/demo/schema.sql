-- The database of a small shop. Times are ISO 8601 in UTC with milliseconds, so that they sort as text.

CREATE TABLE IF NOT EXISTS facts (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS agents (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    team TEXT NOT NULL
);

-- `updated_at` is the time of the last message. `version` counts the changes, so that a page that receives two states
-- of a conversation knows the newer one.
CREATE TABLE IF NOT EXISTS conversations (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    contact_name TEXT NOT NULL,
    channel      TEXT NOT NULL,
    language     TEXT NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('open', 'closed')),
    assigned_to  INTEGER REFERENCES agents (id),
    created_at   TEXT NOT NULL,
    updated_at   TEXT NOT NULL,
    version      INTEGER NOT NULL DEFAULT 1
);

-- A note records a change of the conversation: `content` is 'assigned', 'unassigned', 'closed' or 'reopened',
-- `sender_id` is the agent who made the change, `about_id` is the new assignee.
CREATE TABLE IF NOT EXISTS messages (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    sender_type     TEXT NOT NULL CHECK (sender_type IN ('customer', 'agent', 'note')),
    sender_id       INTEGER REFERENCES agents (id),
    about_id        INTEGER REFERENCES agents (id),
    content         TEXT NOT NULL,
    created_at      TEXT NOT NULL,
    client_id       TEXT,
    UNIQUE (sender_id, client_id)
);

CREATE INDEX IF NOT EXISTS messages_by_conversation ON messages (conversation_id, id);

-- The last message that each agent has read.
CREATE TABLE IF NOT EXISTS reads (
    agent_id        INTEGER NOT NULL REFERENCES agents (id),
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    message_id      INTEGER NOT NULL,
    PRIMARY KEY (agent_id, conversation_id)
) WITHOUT ROWID;

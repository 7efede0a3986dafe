"""Access to the application's database, for the operator's queries: who is a user, who may read a conversation.

- `interface` has the `Database` Protocol and its exceptions. Other packages depend on it alone.
- `factory` opens a database by its URL. `pool` keeps connections to a server and replaces dead ones. `postgres_pool`
  and `postgres_connection` (txpostgres, psycopg2) and `mysql_pool` and `mysql_connection` (PyMySQL in threads) build on
  it.
  `sqlite` has threads of its own. Queries neither block the reactor nor exceed the timeout.
- `placeholders`, `id_aliases` and `exact_ids` make the engines agree on placeholders and on ids.
- `query_check` tries the operator's queries and `migrations` changes a schema, both blocking, for the command line.

The history of events is stored by a broker (`chatws.brokers`), which uses the PostgreSQL modules for its own database.
"""

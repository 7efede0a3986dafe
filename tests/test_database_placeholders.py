"""The operator's SQL and URL: what is refused at start, and what SQLite is given."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.database.placeholders import DatabaseEngine, check_sql, to_sqlite
from chatws.errors import ConfigError


@pytest.mark.parametrize(
    ("sql", "translated"),
    [
        ("SELECT 1 WHERE 1 = %(user_id)s", "SELECT 1 WHERE 1 = :user_id"),
        ("SELECT %(user_id)s%%%(user_id)s", "SELECT :user_id%:user_id"),
        ("SELECT '100%%', \"a%%b\" -- 5%%\n", "SELECT '100%', \"a%b\" -- 5%\n"),
        ("SELECT 'it''s %%' || %(user_id)s /* %% */", "SELECT 'it''s %' || :user_id /* % */"),
        ("SELECT 5 %% 3", "SELECT 5 % 3"),
    ],
)
def test_placeholders_become_those_of_sqlite(sql: str, translated: str) -> None:
    check_sql("user_query", sql, ["user_id"], DatabaseEngine.SQLITE)
    assert to_sqlite(sql) == translated
    with sqlite3.connect(":memory:") as connection:
        connection.execute(translated, {"user_id": 1})
    connection.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT %(usr_id)s", r"%\(usr_id\)s is unknown; known placeholders: %\(user_id\)s"),
        ("SELECT 5 % 3", "must be doubled"),
        ("SELECT %s", "must be doubled"),
        ("SELECT %(user_id)d", "must be doubled"),
        ("SELECT %(user id)s", "must be doubled"),
        ("SELECT '%(user_id)s'", "within quotes"),
        ('SELECT "%(user_id)s"', "within quotes"),
        ("SELECT 1 -- %(user_id)s", "within quotes or a comment"),
        ("SELECT 1 /* %(user_id)s */", "within quotes or a comment"),
        ("SELECT '5%'", "within quotes too"),
        ("SELECT 'never closed %(user_id)s", "within quotes"),
    ],
)
@pytest.mark.parametrize("engine", DatabaseEngine)
def test_ambiguous_sql_placeholders_are_rejected(engine: DatabaseEngine, sql: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^user_query: .*{words}"):
        check_sql("user_query", sql, ["user_id"], engine)


@pytest.mark.parametrize(
    ("engine", "sql"),
    [
        (DatabaseEngine.MYSQL, "SELECT `%(user_id)s`"),
        (DatabaseEngine.MYSQL, "SELECT 1 # %(user_id)s"),
        (DatabaseEngine.MYSQL, r"SELECT 'it\'s', '%(user_id)s'"),
        (DatabaseEngine.MYSQL, r"SELECT 'a\' %(user_id)s"),
        (DatabaseEngine.MYSQL, r'SELECT "a\" %(user_id)s"'),
        (DatabaseEngine.MYSQL, "SELECT 1 --\t%(user_id)s"),
        (DatabaseEngine.MYSQL, "SELECT /*! %(user_id)s */ 1"),
        (DatabaseEngine.POSTGRESQL, r"SELECT E'it\'s %(user_id)s'"),
        (DatabaseEngine.POSTGRESQL, "SELECT $$%(user_id)s$$"),
        (DatabaseEngine.POSTGRESQL, "SELECT $a$ $$ %(user_id)s $a$"),
        (DatabaseEngine.POSTGRESQL, "SELECT 1 /* /* x */ %(user_id)s */"),
        (DatabaseEngine.POSTGRESQL, "SELECT 1 --%(user_id)s"),
        (DatabaseEngine.SQLITE, "SELECT 1 AS [%(user_id)s]"),
        (DatabaseEngine.SQLITE, "SELECT 1 AS `%(user_id)s`"),
    ],
)
def test_placeholder_in_a_quote_or_comment_of_its_engine_is_rejected(engine: DatabaseEngine, sql: str) -> None:
    with pytest.raises(ConfigError, match="within quotes or a comment"):
        check_sql("user_query", sql, ["user_id"], engine)


def test_the_default_queries_use_their_parameters() -> None:
    config = Config()
    assert check_sql("user_query", config.user_query, ["user_id"], DatabaseEngine.MYSQL) == {"user_id"}
    result = check_sql(
        "conversation_query", config.conversation_query, ["user_id", "conversation_id"], DatabaseEngine.MYSQL
    )
    assert result == {"conversation_id"}


#: Parts of SQL that a translation has to tell apart. Single characters would hardly ever form a placeholder.
PARTS = (
    *("%(user_id)s", "%%(user_id)s", "%%", "%", ":user_id", "'", '"', "--", "/*", "*/", "\n", " ", ";", "x"),
    *("`", "[", "]"),
)


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
def test_sql_that_passes_the_check_is_translated_as_psycopg_would_format_it(sql: str) -> None:
    try:
        names = check_sql("user_query", sql, ["user_id"], DatabaseEngine.SQLITE)
    except ConfigError:
        return
    assert to_sqlite(sql) == sql % {"user_id": ":user_id"}
    assert names == ({"user_id"} if sql % {"user_id": "given"} != sql % {"user_id": "changed"} else set())


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"{SECRET}:x",
        f"oracle://u:{SECRET}@h/d",
        f"mysql://u:{SECRET}@h",
        f"postgresql://u:{SECRET}@x@h/d",
        f"postgresql://u:{SECRET}/x@h/d",
        f"postgresql://u:{SECRET}?x@h/d",
        f"postgresql://u:{SECRET}#x@h/d",
        f"postgresql://u:1/{SECRET}@h/d",
        f"postgresql://u:%zz{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@[::1/d",
        f"postgresql://u:{SECRET}@h/d?nonsense=1",
        f"postgresql:u:{SECRET}",
        f"sqlite:{SECRET}",
        f"sqlite://{SECRET}/x",
        f"sqlite:///x?key={SECRET}",
        "sqlite:///",
        "",
    ],
)
def test_invalid_url_gives_a_one_line_error_that_does_not_quote_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_database(url, pool=1, timeout=1.0, reactor=None)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres://u:p%40ss@h:5432/d",
        "postgresql:///d?host=/run/postgresql",
        "postgresql://u@[::1]:5432/d?sslmode=verify-full",
        "postgresql://h1,h2:5433/d?target_session_attrs=read-write",
        "sqlite:///shop.db",
        "sqlite:////var/lib/shop.db",
    ],
)
def test_urls_of_every_usual_shape_are_understood(url: str) -> None:
    assert not open_database(url, pool=1, timeout=1.0, reactor=None).healthy

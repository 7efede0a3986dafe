"""The operator's SQL and URL: what is refused at start, and what SQLite is given."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatws.config import Config
from chatws.database.engines import open_database
from chatws.database.placeholders import check_sql, to_sqlite
from chatws.errors import OperatorError


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
    check_sql("user_query", sql, ["user_id"])
    assert to_sqlite(sql) == translated
    with sqlite3.connect(":memory:") as connection:
        connection.execute(translated, {"user_id": 1})
    connection.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT %(usr_id)s", r"%\(usr_id\)s is not known here; there is %\(user_id\)s"),
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
def test_sql_that_would_not_do_what_it_says_is_refused(sql: str, words: str) -> None:
    with pytest.raises(OperatorError, match=f"^user_query: .*{words}"):
        check_sql("user_query", sql, ["user_id"])


def test_the_default_queries_use_what_they_are_given() -> None:
    config = Config()
    assert check_sql("user_query", config.user_query, ["user_id"]) == {"user_id"}
    found = check_sql("conversation_query", config.conversation_query, ["user_id", "conversation_id"])
    assert found == {"conversation_id"}


@given(st.text(alphabet="%(user_id)s'\"-/*\n ;:", max_size=60))
def test_what_passes_the_check_keeps_no_placeholder_and_no_doubled_percent_sign(sql: str) -> None:
    try:
        names = check_sql("user_query", sql, ["user_id"])
    except OperatorError:
        return
    translated = to_sqlite(sql)
    assert "%(" not in translated.replace("%(", "", sql.count("%%("))
    assert translated.count(":user_id") - sql.count(":user_id") == sql.count("%(user_id)s") - sql.count("%%(user_id)s")
    assert (":user_id" in translated) or not names


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"{SECRET}:x",
        f"mysql://u:{SECRET}@h/d",
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
def test_a_wrong_url_is_one_line_that_quotes_nothing_of_it(url: str) -> None:
    with pytest.raises(OperatorError) as caught:
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

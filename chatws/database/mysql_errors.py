"""Errors of MySQL, MariaDB and PyMySQL, as exceptions of `Database`.

Numbers: https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html and
https://mariadb.com/kb/en/mariadb-error-code-reference/.
"""

from __future__ import annotations

import pymysql

from chatws.database.interface import QueryFailed, ValueRefused
from chatws.database.pool import ConnectFailed, ConnectionDied, QueryAborted

__all__ = ["describe", "is_read_only", "translate_connect_error", "translate_error"]

#: Seconds. The server counts connections per hour (1226) or has blocked this host (1129): each attempt costs another
#: client of the same account, such as PHP.
REFUSED_PAUSE = 60.0
_REFUSED = {1129, 1226}
#: The session is over: shutdown, KILL, idle too long, a broken packet.
_DEAD = {1053, 1152, 1153, 1156, 1157, 1158, 1159, 1160, 1161, 1184, 1927, 4031}
#: The server is read-only: a demoted primary, which another connection may find replaced.
_READ_ONLY = {1290, 1792, 1836}
#: Time limits, deadlocks, exhausted resources.
_ABORTED = {1021, 1028, 1037, 1038, 1041, 1105, 1114, 1135, 1180, 1205, 1206, 1213, 1317, 1969, 3024, 3572}
#: Values that no row has: wrong for the type, too long, or against a constraint.
_REFUSED_VALUES = {1048, 1062, 1264, 1265, 1292, 1300, 1366, 1367, 1406, 1411, 1451, 1452, 1690, 3140, 3819, 4025, 4038}


def describe(error: BaseException) -> str:
    """Return the server's sentence and number, in one line. It names hosts, users and databases, never passwords."""
    number, text = _parts(error)
    line = " ".join(text.split())[:280] or type(error).__name__
    return f"{line} ({number})" if number else line


def translate_connect_error(error: Exception) -> ConnectFailed:
    """Return the exception for a failed attempt to connect."""
    return ConnectFailed(describe(error), REFUSED_PAUSE if _parts(error)[0] in _REFUSED else 0.0)


def is_read_only(error: BaseException) -> bool:
    """Return whether a server rejected a write because it is read-only."""
    return _parts(error)[0] in _READ_ONLY


def translate_error(error: Exception) -> Exception:
    """Return the exception of `PooledConnection.run_query` for a failed query."""
    if isinstance(error, ValueError | OverflowError) and not isinstance(error, pymysql.Error):
        return ValueRefused(describe(error))  # half of a surrogate pair
    number, _ = _parts(error)
    if not isinstance(error, pymysql.Error) or number in _DEAD or number < 1000 or 2000 <= number < 3000:
        # a broken connection: PyMySQL has numbers from 2000, and 0 for a closed one
        if isinstance(error, pymysql.ProgrammingError):
            return QueryFailed(describe(error))
        return ConnectionDied(describe(error))
    if number in _READ_ONLY or number in _ABORTED:
        return QueryAborted(describe(error))
    return ValueRefused(describe(error)) if number in _REFUSED_VALUES else QueryFailed(describe(error))


def _parts(error: BaseException) -> tuple[int, str]:
    arguments = error.args
    if isinstance(error, pymysql.Error) and len(arguments) >= 2 and isinstance(arguments[0], int):
        return arguments[0], str(arguments[1])
    return 0, str(error)

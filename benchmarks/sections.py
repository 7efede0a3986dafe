"""The sections of docs/performance.md that follow the comparison with others."""

from __future__ import annotations

import statistics
from typing import Any

from figures import COLUMNS, MESSAGES, SCALING, Figures, number, paired, table


def scaling(results: dict[str, Any], found: Figures) -> str:
    """What a message to three costs, by how many others are connected. All took turns in the same rounds."""
    measured = [key for key in SCALING if key in found["chatws"] and key in found.get("floor", {})]
    if len(measured) < 2:
        return "Not measured in this run."
    rows = []
    for name, title in (("chatws", "chatws"), ("floor", "a C loop of send()")):
        rows.append([title, *[number(found[name][key]) for key in measured]])
    # within each round
    costs = {
        key: [(one["cpu_us"], one["cpu_us"] - floor["cpu_us"]) for one, floor in zip(*both, strict=False)]
        for key in measured
        for both in [(results["runs"][key]["chatws"], results["runs"][key]["floor"])]
    }
    rows.append(["difference", *[number(statistics.median(own for _, own in costs[key])) for key in measured]])
    runs = {key: results["runs"][key]["chatws"] for key in measured}
    # means, as the kernel tells it by ticks
    owns = {key: statistics.fmean(one["user_us"] for one in runs[key]) for key in measured if "user_us" in runs[key][0]}
    if owns:
        rows.append(["chatws, outside of the kernel", *[number(owns[key]) for key in measured]])
    fewest = measured[0]
    changes = {
        key: statistics.median(
            (own - least) / whole * 100 for (_, own), (whole, least) in zip(costs[key], costs[fewest], strict=False)
        )
        for key in measured[1:]
    }
    told = " and ".join(f"{change:+.0f} % at {SCALING[key]:,}" for key, change in changes.items())
    text = table(["µs per message", *[f"{SCALING[key]:,} connections" for key in measured]], rows) + (
        f"\n\nAgainst {SCALING[fewest]:,} connections, what chatws takes beyond that loop changes by {told} of a "
        "message's whole cost (medians of what was seen within each round)."
    )
    if owns:
        whole = statistics.fmean(one["cpu_us"] for one in results["runs"][fewest]["chatws"])
        grown = {key: (owns[key] - owns[fewest]) / whole * 100 for key in measured[1:]}
        own_told = " and ".join(f"{change:+.0f} % at {SCALING[key]:,}" for key, change in grown.items())
        held = "within" if max(grown.values()) <= 15 else "**beyond**"
        text += (
            f" Of chatws's own, apart from what the kernel does on its behalf, it is {own_told}, {held} the 15 % aimed "
            "at: nothing is done for those who are not addressed, but less of what is needed lies in the processor's "
            "caches, of chatws's own and of the kernel's sockets."
        )
    return text


def compression(results: dict[str, Any]) -> str:
    """What `--compression` costs and saves."""
    medians = results["medians"]
    rows = []
    for recipients, kind in (("500", "room"), ("3", "group")):
        plain, deflated = (medians.get(f"{way}_{kind}", {}).get("chatws-deflate") for way in ("plain", "deflated"))
        if plain is None or deflated is None:
            continue
        cells = [recipients]
        for one in (plain, deflated):
            cells += [number(one["cpu_us"]), f"{one['bytes']:.0f}"]
        more = deflated["cpu_us"] - plain["cpu_us"]
        cells += [
            ("+" if more >= 0 else "-") + number(abs(more)),
            f"{100 - deflated['bytes'] / plain['bytes'] * 100:.0f} %",
        ]
        rows.append(cells)
    if not rows:
        return "Its cost was not measured in this run."
    head = ["recipients", "plain: µs per event", "bytes", "compressed: µs per event", "bytes", "µs more", "bytes saved"]
    return (
        table(head, rows) + "\n\nOne event at a time, of plain text; bytes are those of one recipient's payload. The "
        "difference is one `deflate` for the event, and a look at what is deflated already for each recipient."
    )


def storms(document: dict[str, Any]) -> str:
    """The histograms of the bystander's delays."""
    phases = document["phases"]
    bounds = phases[0]["bounds"]
    names = {
        "calm": "nothing happens",
        "disconnect": "all disconnect at once",
        "reconnect": f"all reconnect at once, each recovering {document['recover']} events",
    }
    head = ["delay of a bystander's event", *[names[phase["phase"]] for phase in phases]]
    edges = [0, *bounds]
    rows = [
        [f"{low} to {high} ms", *[str(phase["histogram"][index] or "") for phase in phases]]
        for index, (low, high) in enumerate(zip(edges, bounds, strict=False))
        if any(phase["histogram"][index] for phase in phases)
    ]
    if any(phase["histogram"][-1] for phase in phases):
        rows.append([f"over {bounds[-1]} ms", *[str(phase["histogram"][-1] or "") for phase in phases]])
    rows.append(["*median*", *[f"{phase['p50_ms']:.1f} ms" for phase in phases]])
    rows.append(["*99 of 100 within*", *[f"{phase['p99_ms']:.0f} ms" for phase in phases]])
    rows.append(["*longest*", *[f"{phase['max_ms']:.0f} ms" for phase in phases]])
    rows.append(["*the bystander's own clock was late by up to*", *[f"{phase['late_ms']:.0f} ms" for phase in phases]])
    rows.append(["*processor time of the client's core*", *[f"{phase['client_cpu'] * 100:.0f} %" for phase in phases]])
    worst = max(phase["max_ms"] for phase in phases)
    last = phases[-1]
    held = "within" if worst <= document["limit_ms"] else "**beyond**"
    return (
        f"{last['connections']:,} connections of {document['users']} people. The bystander is sent an event by a "
        f"backend every 20 ms. The longest delay was {worst:.0f} ms, {held} the {document['limit_ms']} ms aimed "
        f"at; after {last['storm_s']:.1f} s all {last['recovered']:,} were back and had all that they had missed.\n\n"
        + table(head, rows)
    )


def reactors(results: dict[str, Any], found: Figures) -> str:
    """Which reactor to take."""
    names = {"chatws": "epoll (the default on Linux)", "chatws-asyncio": "asyncio", "chatws-uvloop": "asyncio, uvloop"}
    measured = {name: found[name] for name in names if name in found}
    if len(measured) < 2:
        return "Not measured in this run."
    columns = [column for column in ("room1", "inbox", "connect", "idle") if column in measured["chatws"]]
    rows = [[names[name], *[number(row.get(column)) for column in columns]] for name, row in measured.items()]
    ratios = {
        name: {
            column: paired(results, column, name, "chatws")[0]
            for column in columns
            if name in results["runs"].get(column, {})
        }
        for name in measured
        if name != "chatws"
    }
    for name, row in ratios.items():
        rows.append([f"*{names[name]} ÷ epoll, within a round*", *[number(row.get(column)) for column in columns]])
    text = table(["reactor", *[COLUMNS[column] for column in columns]], rows)
    gains = {name: min(row[column] for column in row if column in MESSAGES) for name, row in ratios.items()}
    best = min(gains, key=gains.__getitem__)
    titles = results["titles"]["servers"]
    commands = {
        "chatws-asyncio": "`twistd --reactor asyncio`",
        "chatws-uvloop": "`pip install chatws[uvloop]` and `twistd --reactor uvloop`",
    }
    if gains[best] < 0.9:
        advice = (
            f"{titles[best]} saves up to {(1 - gains[best]) * 100:.0f} % of a message's cost: take it where that "
            f"counts, with {commands[best]}. The default needs nothing installed and is what everything else "
            "here was measured with. `select` ends at 1,024 open files; chatws warns of it."
        )
    else:
        advice = (
            "No other reactor saves a tenth of a message's cost: **take the default, epoll.** Most of the cost is the "
            "kernel's `send`, which is called directly whatever the reactor. The others are for those who have asyncio "
            f"code to run in the same process: {' or '.join(commands[name] for name in gains)}. `select` ends at "
            "1,024 open files; chatws warns of it."
        )
    return f"{text}\n\n{advice}"


def pythons(results: dict[str, Any], found: Figures) -> str:
    """Which Python to take."""
    versions = results["versions"]
    other = found.get("chatws-other-python")
    if other is None:
        return f"Everything here was measured with Python {versions['python']}. No other was measured in this run."
    columns = [column for column in ("room1", "inbox", "connect") if column in other]
    ratios = {column: paired(results, column, "chatws-other-python", "chatws")[0] for column in columns}
    rows = [
        [versions["python"], *[number(found["chatws"][column]) for column in columns]],
        [versions["other_python"], *[number(other[column]) for column in columns]],
        ["*second ÷ first, within a round*", *[f"{ratios[column]:.2f}" for column in columns]],
    ]
    if max(ratios.values()) > 1.1:
        advice = (
            "Debian builds its with profile-guided optimization; who builds one, by `pyenv` for instance, has to ask "
            "for it: `PYTHON_CONFIGURE_OPTS='--enable-optimizations --with-lto' pyenv install …`."
        )
    else:
        advice = "The other does not stand out from it: starts of one and the same server differ by a tenth."
    return table(["Python", *[COLUMNS[column] for column in columns]], rows) + (
        f"\n\nEverything else here was measured with the first. {advice}"
    )

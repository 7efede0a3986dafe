"""The sections of docs/performance.md after the comparison with other servers."""

from __future__ import annotations

import statistics
from typing import Any

from figures import COLUMNS, MESSAGES, SCALING, Figures, number, paired, spread, table


def scaling(results: dict[str, Any], by_server: Figures) -> str:
    """The cost of a message to three recipients, by the number of connections. All took turns in the same rounds."""
    measured = [key for key in SCALING if key in by_server["chatws"] and key in by_server.get("floor", {})]
    if len(measured) < 2:
        return "Not measured in this run."
    rows = []
    for name, title in (("chatws", "chatws"), ("floor", "a C loop of send()")):
        rows.append([title, *[number(by_server[name][key]) for key in measured]])
    # within each round
    costs = {
        key: [(run["cpu_us"], run["cpu_us"] - floor["cpu_us"]) for run, floor in zip(*both, strict=False)]
        for key in measured
        for both in [(results["runs"][key]["chatws"], results["runs"][key]["floor"])]
    }
    rows.append(["difference", *[number(statistics.median(own for _, own in costs[key])) for key in measured]])
    runs = {key: results["runs"][key]["chatws"] for key in measured}
    # means, because the kernel counts it in ticks
    owns = {key: statistics.fmean(run["user_us"] for run in runs[key]) for key in measured if "user_us" in runs[key][0]}
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
        f"\n\nCompared with {SCALING[fewest]:,} connections, the difference to that loop changes by {told} of a "
        "message's whole cost (medians within each round)."
    )
    if owns:
        whole = statistics.fmean(run["cpu_us"] for run in results["runs"][fewest]["chatws"])
        grown = {key: (owns[key] - owns[fewest]) / whole * 100 for key in measured[1:]}
        own_told = " and ".join(f"{change:+.0f} % at {SCALING[key]:,}" for key, change in grown.items())
        held = "within" if max(grown.values()) <= 15 else "**beyond**"
        text += (
            f" The time outside of the kernel changes by {own_told}, {held} the target of 15 %. The server does "
            "nothing for connections that are not addressed. With more connections, however, less of the needed memory "
            "is in the processor's caches, in chatws and in the kernel's sockets."
        )
    return text


def contacts(results: dict[str, Any], by_server: Figures) -> str:
    """The cost of a message to contacts and their agent, beside that to agents only."""
    if not {"agents9000", "contacts9000"} <= by_server["chatws"].keys():
        return "Not measured in this run."
    titles = {"agents9000": "9,000 agents' connections", "contacts9000": "9,000 contacts' connections, 100 agents"}
    medians = results["medians"]
    rows = [
        [title, number(medians[key]["chatws"]["cpu_us"]) + spread(results, "chatws", key)]
        for key, title in titles.items()
    ]
    runs = (results["runs"][key]["chatws"] for key in titles)
    ratios = [contact["cpu_us"] / agent["cpu_us"] for agent, contact in zip(*runs, strict=False)]
    low, median, high = statistics.quantiles(ratios, method="inclusive")
    return table(["", "µs per message"], rows) + (
        f"\n\nBoth took turns in the same rounds, so compare them with each other only. Within a round a message cost "
        f"{median:.2f} times as much with contacts (the median of {len(ratios)} rounds, quartiles {low:.2f} and "
        f"{high:.2f})."
    )


def compression(results: dict[str, Any]) -> str:
    """The cost and savings of `--compression`."""
    medians = results["medians"]
    rows = []
    for recipients, kind in (("500", "room"), ("3", "group")):
        plain, deflated = (medians.get(f"{way}_{kind}", {}).get("chatws-deflate") for way in ("plain", "deflated"))
        if plain is None or deflated is None:
            continue
        cells = [recipients]
        for result in (plain, deflated):
            cells += [number(result["cpu_us"]), f"{result['bytes']:.0f}"]
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
        table(head, rows) + "\n\nOne event at a time, of plain text. Bytes are those of one recipient's payload. The "
        "difference is one `deflate` for the event, and a lookup of the deflated frame for each recipient."
    )


def hostile(document: dict[str, Any]) -> str:
    """The bystander's delays under each attack, and the memory that it takes."""
    rows = [
        [
            attack["attack"],
            f"{attack['event_max_ms']:.0f} ms",
            f"{attack['login_max_ms']:.0f} ms"
            + (f", {attack['failed_logins']} failed" * (attack["failed_logins"] > 0)),
            f"{attack['memory_mib']:.0f} MiB",
        ]
        for attack in document["attacks"]
    ]
    worst = max(attack["event_max_ms"] for attack in document["attacks"][1:])
    held = "within" if worst <= document["limit_ms"] else "**beyond**"
    busy = f" Other programs used the machine too (load {document['load']:.0f})." if document["load"] > 1 else ""
    return (
        "An attack runs beside a bystander, on two cores. A backend sends an event to the bystander every 20 ms, and "
        "another client logs in and subscribes twice a second, from an address of its own. The history has "
        f"{document['history']:,} events. An answer of the application takes {document['answer_ms']:.0f} ms, and a "
        "permission query some milliseconds of a processor. The settings are the defaults. The longest delay of an "
        f"event was {worst:.0f} ms, {held} the target of {document['limit_ms']} ms.{busy}\n\n"
        + table(["attack", "longest delay of an event", "longest login", "memory"], rows)
    )


def storms(document: dict[str, Any]) -> str:
    """The histograms of the bystander's delays."""
    phases = document["phases"]
    bounds = phases[0]["bounds"]
    names = {
        "calm": "no disconnects",
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
    rows.append(["*99th percentile*", *[f"{phase['p99_ms']:.0f} ms" for phase in phases]])
    rows.append(["*maximum*", *[f"{phase['max_ms']:.0f} ms" for phase in phases]])
    rows.append(["*maximum delay of the bystander's own clock*", *[f"{phase['late_ms']:.0f} ms" for phase in phases]])
    rows.append(["*processor time of the client's core*", *[f"{phase['client_cpu'] * 100:.0f} %" for phase in phases]])
    worst = max(phase["max_ms"] for phase in phases)
    last = phases[-1]
    held = "within" if worst <= document["limit_ms"] else "**beyond**"
    return (
        f"{last['connections']:,} connections of {document['users']} users disconnect and reconnect at once. A backend "
        f"sends an event to a bystander every 20 ms. The longest delay was {worst:.0f} ms, {held} the target of "
        f"{document['limit_ms']} ms. After {last['storm_s']:.1f} s all {last['recovered']:,} were connected again and "
        "had recovered all missed events.\n\n" + table(head, rows)
    )


def longest_turns(document: dict[str, Any]) -> str:
    """The longest turn of the reactor for each kind of work."""
    rows = [[row["work"], f"{row['ms']:.1f} ms"] for row in document["rows"]]
    return (
        f"With {document['connections']:,} connections, the processor time of the longest turn of the event loop:\n\n"
        + table(["work", "longest turn"], rows)
    )


def reactors(results: dict[str, Any], by_server: Figures) -> str:
    """The reactors compared."""
    names = {"chatws": "epoll (the default on Linux)", "chatws-asyncio": "asyncio"}
    measured = {name: by_server[name] for name in names if name in by_server}
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
    commands = {"chatws-asyncio": "`twistd --reactor asyncio`"}
    if gains[best] < 0.9:
        advice = (
            f"{titles[best]} saves up to {(1 - gains[best]) * 100:.0f} % of a message's cost. Use it with "
            f"{commands[best]} if that matters. The default needs no installation, and everything else here was "
            "measured with it. `select` is limited to 1,024 open files, and chatws warns about it."
        )
    else:
        advice = (
            "No other reactor saves a tenth of a message's cost, so **use the default, epoll.** Most of it is the "
            "kernel's `send`, which chatws calls directly with any reactor. asyncio's reactor runs asyncio code in the "
            f"same process: {commands[best]}. `select` is limited to 1,024 open files, and chatws warns about it."
        )
    return f"{text}\n\n{advice}"


def pythons(results: dict[str, Any], by_server: Figures) -> str:
    """Python versions compared."""
    versions = results["versions"]
    other = by_server.get("chatws-other-python")
    if other is None:
        return f"Everything here was measured with Python {versions['python']}. No other was measured in this run."
    columns = [column for column in ("room1", "inbox", "connect") if column in other]
    ratios = {column: paired(results, column, "chatws-other-python", "chatws")[0] for column in columns}
    rows = [
        [versions["python"], *[number(by_server["chatws"][column]) for column in columns]],
        [versions["other_python"], *[number(other[column]) for column in columns]],
        ["*second ÷ first, within a round*", *[f"{ratios[column]:.2f}" for column in columns]],
    ]
    if max(ratios.values()) > 1.1:
        advice = (
            "Debian builds Python with profile-guided optimization. A build with `pyenv`, for example, needs an "
            "option for it: `PYTHON_CONFIGURE_OPTS='--enable-optimizations --with-lto' pyenv install …`."
        )
    else:
        advice = "The difference to the other is not significant, because starts of the same server differ by a tenth."
    return table(["Python", *[COLUMNS[column] for column in columns]], rows) + (
        f"\n\nEverything else here was measured with the first. {advice}"
    )

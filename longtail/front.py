"""What came of a sweep: means over its questions, the Pareto front of agreement over cost. Rows: see `sweep`."""

from statistics import mean

MEANS = ("patches", "visual", "layer_mean", "agreement", "same", "kl", "first_token", "total")
SHARES = ("first_of_full", "total_of_full")


def summary(rows: list[dict]) -> list[dict]:
    """A row for each reducer, by method and value: means over its questions, n how many.

    Keys as of a row; `image`, `question` and `answer` are those of the least agreement. Rows with a reason are left
    out; so is a reducer that was refused on every question.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if "reason" not in row:
            groups.setdefault((row["method"], row["spec"], row["value"]), []).append(row)
    means = [
        min(group, key=lambda row: row["agreement"])
        | {key: mean(map(float, (row[key] for row in group))) for key in (*MEANS, *SHARES)}
        | {"n": len(group)}
        for group in groups.values()
    ]
    return sorted(means, key=lambda row: (row["method"] != "Full", row["method"], row["value"] or 0))


def front(rows: list[dict], cost: str = "layer_mean") -> list[dict]:
    """The Pareto front: the rows that nothing as cheap, to the token or per cent, agrees better than, cheapest first.

    `cost` is a key of a row, `first_of_full` for time. Rows with a reason are left out.
    """
    best, chosen, digits = -1.0, [], 2 if cost.endswith("of_full") else 0
    fine = (row for row in rows if "reason" not in row)
    for row in sorted(fine, key=lambda row: (round(row[cost], digits), -row["agreement"])):
        if row["agreement"] > best:
            best = row["agreement"]
            chosen.append(row)
    return chosen

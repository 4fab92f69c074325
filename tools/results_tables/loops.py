"""What the loops cost beyond their networks."""

from .source import read, table


def _number(row: dict[str, str], column: str, form: str) -> str:
    value = row.get(column, "")
    return "-" if value in ("", "nan") else form.format(float(value))


def _share(row: dict[str, str], column: str) -> str:
    value = row.get(column, "")
    return "-" if value in ("", "nan") else f"{100 * float(value):.0f} %"


def _band(row: dict[str, str], column: str) -> str:
    """Median and quartiles of a ratio."""
    ends = [_number(row, f"{column}_{end}", "{:.2f}") for end in ("low", "high")]
    return _number(row, column, "{:.1f}x") + (f" ({'-'.join(ends)})" if ends[0] != "-" else "")


def loops() -> list[str]:
    """Every loop and size: time per step, what is not the networks', what waits for the host, and the peers."""
    rows = read("loops.csv")
    if not rows:
        return ["Not measured yet."]
    head = ["loop, size", "threads", "µs a step", "networks", "own", "overhead (quartiles)", "launches a step, own"]
    head += ["syncs in a run", "peak MB", "over plain torch", "over a synchronising user's code"]
    out = []
    for r in rows:
        name = f"{r['loop']}, {r['size']}" + (f", {r['variant']}" if r.get("variant") else "") + f", B = {r['batch']}"
        ends = f" ({_share(r, 'overhead_low')} to {_share(r, 'overhead_high')})" if r.get("overhead_low") else ""
        cells = [name, r["threads"], *(_number(r, f"{k}_us_per_step", "{:.0f}") for k in ("loop", "network", "own"))]
        cells += [_share(r, "overhead") + ends, _number(r, "own_launches_per_step", "{:.1f}")]
        cells += [_number(r, "loop_syncs_per_run", "{:.0f}"), _number(r, "loop_peak_mb", "{:.0f}")]
        out.append([*cells, _band(r, "ratio_to_plain"), _band(r, "ratio_to_user")])
    r = rows[0]
    where = f"{r['device']}, torch {r['torch']}, commit {r['commit']}, {r['date']}"
    return [f"Loops on {where}; launches and waits for the host are counted, not estimated:", "", *table(head, out)]

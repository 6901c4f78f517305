"""A plan as a table for the terminal."""

GIB = 2**30
PROVES = (
    "Compiled for these chips, not run: the program is the one that a run starts with, "
    "its memory and what it sends are XLA's; times are bounds, never measurements. "
    "Samples and held-out scores, made between steps of training, are not in it."
)


def table(result: dict, chips: int) -> str:
    """One program of a plan; `chips` in all."""
    hbm = result["hbm"]
    lines = [("program", result["program"]), ("HBM a device", _hbm_line(result))]
    lines += [(f"  {n}", gib(b)) for n, b in hbm["of_arguments"].items()]
    lines.append(("  temporaries", gib(hbm["temporaries"])))
    rest = hbm["total"] - hbm["temporaries"] - hbm["beside"]
    rest -= sum(hbm["of_arguments"].values())
    # Arguments that a program does not read are not passed to it.
    name = "  padding, outputs" if rest >= 0 else "  of those not read"
    lines.append((name, gib(abs(rest))))
    if hbm["beside"]:
        lines.append(("  what lies beside it", gib(hbm["beside"])))
    if hbm["host"]:
        lines.append(("on the host", gib(hbm["host"])))
    if "cache" in result:
        lines.append(("reference cache", f"{gib(result['cache'])}, in the above"))
    lines += _listed(
        "largest temporaries",
        [
            f"{gib(b['bytes']):>10}  {b['shape']}  {short(b['name'])}"
            for b in hbm["largest"][:6]
        ],
    )
    lines += _listed("sent by a device", _sent_lines(result["collectives"]))
    if result["loops_of_unknown_length"]:
        lines.append(("counted once", f"{result['loops_of_unknown_length']} loops"))
    if result["computations_not_reached"]:
        left = f"{result['computations_not_reached']} computations: a mistake of ours"
        lines.append(("NOT COUNTED", left))
    lines += _speed_lines(result, chips)
    return "\n".join(f"{name:<22}{value}" for name, value in lines)


def _listed(title: str, values: list[str]) -> list[tuple[str, str]]:
    return [(title if not i else "", value) for i, value in enumerate(values)]


def _sent_lines(collectives: dict[str, dict]) -> list[str]:
    lines = []
    for kind, one in sorted(collectives.items(), key=lambda item: -item[1]["sent"]):
        far = f", {gib(one['across'])} to other slices" if one["across"] else ""
        lines.append(f"{gib(one['sent']):>10}  {kind} x {one['count']}{far}")
    return lines


def _speed_lines(result: dict, chips: int) -> list[tuple[str, str]]:
    roof, lines = result["roofline"], []
    if result["tokens"]:
        lines.append(("tokens", f"{result['tokens']:,} of video"))
    if result["flops"]:
        again = result["flops_executed"] / result["flops"]
        work = f"{result['flops']:.3g}; with what is computed again, {again:.2f} x"
        lines.append(("FLOPs", work))
    lines.append(("bytes moved", f"{gib(result['bytes_moved'])} a device"))
    parts = (f"{n} {seconds(roof[n])}" for n in ("compute", "memory", "network"))
    best = f"{seconds(roof['step'])} ({', '.join(parts)}): {roof['by']} bound"
    lines.append(("at best", best))
    if result["flops"]:
        lines.append(("MFU ceiling", f"{roof['ceiling']:.0%} on {chips} chips"))
    took = (result["compile_seconds"], result["trace_seconds"])
    lines.append(("compile time", "{:.0f} s, traced in {:.0f} s".format(*took)))
    return lines


def gib(count: float) -> str:
    """Bytes as GiB, or a smaller unit where they are few."""
    for size, unit in ((GIB, "GiB"), (2**20, "MiB")):
        if count >= 0.1 * size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"


def seconds(value: float) -> str:
    """Three digits."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (0.0, "us")):
        if value >= size:
            return f"{value / (size or 1e-6):.3g} {unit}"
    raise ValueError(value)


def short(name: str, width: int = 60) -> str:
    """The end of a traced name: where it comes from."""
    name = name.split(";")[0].replace("closed_call/", "")
    return name if len(name) <= width else "..." + name[-width + 3 :]


def _hbm_line(result: dict) -> str:
    hbm = result["hbm"]
    share = hbm["total"] / hbm["limit"]
    verdict = f"{1 - share:.0%} to spare" if result["fits"] else "DOES NOT FIT"
    return f"{gib(hbm['total'])} of {gib(hbm['limit'])}, {verdict}"

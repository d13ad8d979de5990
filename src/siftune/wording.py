"""How numbers are worded, in ASCII: the same in the summary, the model card and the report."""


def percent(share: float) -> str:
    """0.5824 → 58.2%."""
    return f"{100 * share:.1f}%"


def count(number: float) -> str:
    """4884480 → 4,884,480."""
    return f"{number:,.0f}"


def small(number: float) -> str:
    """A number without a unit, to three digits: 0.00041, 1.9e-06."""
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """4.2 s, 5 min 43 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """271058944 → 258.5 MiB."""
    amount = num_bytes / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def probability(p: float) -> str:
    """A p-value to four places: 0.0312, < 0.0001."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"

"""What is wrong with one row, and how many such rows are too many."""

from collections import Counter

from siftune.stage import UserError


class Fault(ValueError):  # noqa: N818, what it says of a row is no error of ours
    """One row cannot be used; `reason` is what such rows are counted by, `detail` is this row's."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def refuse_if_too_many(
    faulty: Counter[str],
    first: dict[str, str],
    *,
    num_rows: int,
    allowed: float,
    key: str,
    hint: str,
) -> None:
    """Raise UserError when more than the share `allowed` of the rows is faulty.

    Args:
        faulty: reason → number of rows.
        first: reason → place and detail of the first such row.
        key: the key of params.yaml that allows more.
        hint: where all of these rows are.
    """
    if faulty.total() <= allowed * num_rows:
        return
    raise UserError(
        "\n  ".join(
            [
                f"{faulty.total()} of {num_rows} rows cannot be used:",
                *(
                    f"{number} x {reason}. The first: {first[reason]}"
                    for reason, number in faulty.most_common()
                ),
                f"{hint} Mend them, or let a share of the rows be left out: "
                f"params.yaml: {key} (now {allowed:g}).",
            ]
        )
    )

"""Log-probabilities of continuations; tokens that their contexts share are computed once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from siftune.chat.masking import IGNORED
from siftune.throughput import attention, head, layout, loss, planner

Row = tuple[list[int], list[int]]  # token ids of a context and of what follows it, at least one


@torch.no_grad()
def of_continuations(
    model: Any, rows: Sequence[Row], *, budget: int
) -> Iterator[tuple[int, float, bool]]:
    """How likely each continuation is after its context.

    Args:
        budget: tokens that are computed at once.

    Yields:
        the row's index, in an order of their own; the sum of its tokens' log-probabilities in
        nats; whether each of them is the likeliest.
    """
    output_head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    # The last token is predicted, and predicts nothing.
    ids = [[*context, *continuation[:-1]] for context, continuation in rows]
    labels = [[IGNORED] * len(context) + continuation for context, continuation in rows]
    for pack in planner.plan(ids, budget):
        laid = layout.lay_out(pack, ids, labels).to(model.device)
        with attention.instead(model, attention.NAME), head.instead_of_logits(output_head) as seen:
            model(**loss.inputs(laid))
        log_probs, are_top = head.log_probs(seen[0][0], output_head, laid, softcap)
        for row in pack.rows:
            own = laid.row_of == row
            yield row, log_probs[own].sum().item(), bool(are_top[own].all())

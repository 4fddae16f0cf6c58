"""Two views of a window, and where they predict the same token."""

from __future__ import annotations

import pytest
import torch

from longshort.alignment.views import overlap
from longshort.data.windows import two_views
from longshort.models.fused import IGNORED
from tests.support import reference


@pytest.mark.parametrize("extra", [1, 3, 7])
def test_views_predict_the_same_token_on_the_overlap(extra: int) -> None:
    length = 8
    window = torch.arange(length + extra + 1)
    inputs, targets = (part.flatten() for part in two_views(window, length))
    at = overlap(targets.view(2, 1, length), [extra])
    assert len(at.in_a) == length - extra
    assert torch.equal(inputs[at.in_a], inputs[at.in_b]) and torch.equal(targets[at.in_a], targets[at.in_b])
    assert torch.equal(targets[at.in_a], inputs[at.in_a] + 1)
    assert (at.in_a - (at.in_b - length) == extra).all()  # so much more context in view A


@pytest.mark.parametrize(("kind", "k"), [("all", None), ("last", None), ("last-k", 2), ("last-k", 99)])
def test_overlap_of_rows_with_their_own_extra_and_ignored_labels(kind: str, k: int | None) -> None:
    batch, length, extra = 3, 5, [1, 3, 4]
    targets = torch.arange(length).repeat(2, batch, 1)
    targets[0, 1, 4] = targets[1, 2, 0] = IGNORED
    at = overlap(targets, extra, kind, k)
    expected = reference.aligned(targets, extra, kind, k)
    counted = at.weight > 0
    rows, in_a, in_b = at.in_a // length, at.in_a % length, at.in_b % length
    assert torch.equal(rows, at.in_b // length - batch)
    for row in range(batch):
        here = counted & (rows == row)
        assert list(zip(in_a[here].tolist(), in_b[here].tolist(), strict=True)) == expected[row]
        assert at.weight[here].tolist() == pytest.approx([1 / batch / max(1, len(expected[row]))] * len(expected[row]))
    assert sorted(torch.cat([at.in_a, at.in_b, at.alone]).tolist()) == list(range(2 * batch * length))


@pytest.mark.parametrize(("extra", "kind", "k"), [([5], "all", None), ([0], "all", None), ([1], "last-k", None)])
def test_impossible_overlaps_are_refused(extra: list[int], kind: str, k: int | None) -> None:
    with pytest.raises(ValueError, match="l_extra|last-k"):
        overlap(torch.zeros(2, 1, 5, dtype=torch.long), extra, kind, k)

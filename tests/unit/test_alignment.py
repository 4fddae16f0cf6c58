"""The objective against an independent, naive, float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.alignment.divergences import divergence
from longshort.alignment.divergences.kinds import MODULES
from longshort.alignment.hidden import distance
from longshort.alignment.objective import Batch, Terms, install, parts
from longshort.alignment.views import IGNORED, collate, overlap, two_views

CASES = [(kind, stop) for kind in MODULES for stop in ("none", "first", "second")] + [("sce", "targets")]


def naive(kind: str, p: torch.Tensor, q: torch.Tensor, p_weight: torch.Tensor, q_weight: torch.Tensor) -> torch.Tensor:
    """The definitions of the paper, term by term; p_weight and q_weight are what weighs the logarithms."""
    total = p.new_zeros(())
    for i in range(len(p)):
        m = (p[i] + q[i]) / 2
        total = (
            total
            + {
                "sce": lambda i=i: -p_weight[i] * q[i].log() - q_weight[i] * p[i].log(),
                "kl": lambda i=i: p[i] * (p[i].log() - q[i].log()),
                "reverse-kl": lambda i=i: q[i] * (q[i].log() - p[i].log()),
                "symmetric-kl": lambda i=i: p[i] * (p[i] / q[i]).log() + q[i] * (q[i] / p[i]).log(),
                "js": lambda i=i, m=m: (p[i] * (p[i] / m).log() + q[i] * (q[i] / m).log()) / 2,
                "l2": lambda i=i: (p[i] - q[i]) ** 2,
            }[kind]()
        )
    return total


def reference(kind: str, a: torch.Tensor, b: torch.Tensor, stop: str) -> torch.Tensor:
    a = a.detach() if stop == "first" else a
    b = b.detach() if stop == "second" else b
    p, q = (x.exp() / x.exp().sum() for x in (a, b))
    weights = (p.detach(), q.detach()) if stop == "targets" else (p, q)
    return naive(kind, p, q, *weights)


@pytest.mark.parametrize(("kind", "stop"), CASES)
@settings(max_examples=10, deadline=None)
@given(vocabulary=st.integers(2, 6), positions=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_divergence_and_gradient_equal_the_reference(
    kind: str, stop: str, vocabulary: int, positions: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(positions, vocabulary, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours = divergence(kind, a, b, stop)
    theirs = torch.stack([reference(kind, x, y, stop) for x, y in zip(a, b, strict=True)])
    assert ours.shape == (positions,)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, positions + 1, dtype=torch.float64)
    for ours_grad, theirs_grad in zip(
        torch.autograd.grad((ours * weights).sum(), (a, b), allow_unused=True),
        torch.autograd.grad((theirs * weights).sum(), (a, b), allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if ours_grad is None else ours_grad, zero if theirs_grad is None else theirs_grad
        )


def test_identities() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    entropy = -(p * p.log()).sum(-1) - (q * q.log()).sum(-1)
    torch.testing.assert_close(divergence("sce", a, b), entropy + divergence("symmetric-kl", a, b))
    torch.testing.assert_close(
        divergence("symmetric-kl", a, b), divergence("kl", a, b) + divergence("reverse-kl", a, b)
    )
    assert divergence("symmetric-kl", a, a).abs().max() < 1e-15
    assert (divergence("js", 50 * a, 50 * b) <= math.log(2) + 1e-12).all()
    for kind, stop, zero in [
        ("symmetric-kl", "none", True),
        ("js", "none", True),
        ("sce", "targets", True),
        ("sce", "none", False),
    ]:
        x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
        divergence(kind, x, y, stop).sum().backward()
        assert (x.grad.abs().max() < 1e-12) == zero, (kind, stop)


def test_half_precision_is_computed_in_single() -> None:
    a, b = torch.randn(2, 5, 300).bfloat16()
    assert divergence("sce", a, b).dtype == torch.float32
    torch.testing.assert_close(
        divergence("sce", a, b).double(), divergence("sce", a.double(), b.double()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "stop"), [("sc", "none"), ("sce", "both"), ("kl", "targets")])
def test_unknown_choices_are_refused(kind: str, stop: str) -> None:
    with pytest.raises(ValueError, match="use|defined for sce only"):
        divergence(kind, torch.zeros(1, 2), torch.zeros(1, 2), stop)


@pytest.mark.parametrize("extra", [1, 3, 7])
def test_views_predict_the_same_token_on_the_overlap(extra: int) -> None:
    length = 8
    window = torch.arange(length + extra + 1)
    inputs, targets = two_views(window, length)
    at = overlap(targets[:, None], torch.tensor([extra]))
    assert len(at.rows) == length - extra
    for a, b in zip(at.in_a, at.in_b, strict=True):
        assert inputs[0, a] == inputs[1, b] and targets[0, a] == targets[1, b] == inputs[0, a] + 1
        assert a - b == extra  # so much more context in view A


def test_rows_of_a_batch_may_have_their_own_extra_and_ignored_labels() -> None:
    targets = torch.arange(5).repeat(2, 3, 1)
    targets[0, 1, 4] = targets[1, 2, 0] = IGNORED
    at = overlap(targets, torch.tensor([1, 3, 4]))
    pairs = list(zip(*(x.tolist() for x in (at.rows, at.in_a, at.in_b)), strict=True))
    assert pairs == [(0, 1, 0), (0, 2, 1), (0, 3, 2), (0, 4, 3), (1, 3, 0)]
    last = overlap(targets, torch.tensor([1, 3, 4]), "last")
    assert last.rows.tolist() == [0] and last.in_b.tolist() == [3]
    assert overlap(targets[:, :1], torch.tensor([1]), "last-k", 2).in_a.tolist() == [3, 4]
    assert overlap(targets[:, :1], torch.tensor([1]), "last-k", 99).in_a.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("tokens", [9, 17])
def test_windows_without_extra_or_overlap_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="l_extra"):
        two_views(torch.arange(tokens), 8)


def test_hidden_distances_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    # RMS of (3, 4) is sqrt(12.5): both features differ by 1 / sqrt(12.5).
    assert distance("mse", a, b).item() == pytest.approx(1 / 12.5, rel=1e-6)
    assert distance("cosine", a, b).item() == pytest.approx(1 - 24 / 25)
    assert distance("mse", a, 10 * a).item() == pytest.approx(0, abs=1e-6)


def small_model(seed: int = 0, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).double()


def batch_of(length: int, extras: list[int]) -> dict[str, torch.Tensor]:
    samples = []
    for row, extra in enumerate(extras):
        samples.append({"window": (torch.arange(length + extra + 1) * (row + 3)) % 11, "extra": extra})
    return collate(samples, length)


@pytest.mark.parametrize("extras", [[2, 2], [1, 5], [5]])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "terms",
    [
        Terms(),
        Terms(output="sce"),
        Terms(output="symmetric-kl", overlap="last"),
        Terms(output="js", overlap="last-k", overlap_k=2, output_stop_gradient="first"),
        Terms(layers=(1, 2)),
        Terms(output="kl", layers=(2,), distance="cosine"),
        Terms(layers=(1,), distance="logit-lens", lens="symmetric-kl"),
    ],
    ids=lambda terms: f"{terms.output}-{terms.overlap}-{terms.layers}-{terms.distance}",
)
def test_loss_and_gradients_equal_two_plain_forwards(terms: Terms, extras: list[int], tied: bool) -> None:
    """One forward inside the head against two forwards of the untouched model, position by position."""
    length, alpha_output, alpha_hidden = 6, 0.7, 0.3
    plain, ours = small_model(tied=tied), small_model(tied=tied)
    head = install(ours, terms)
    batch = batch_of(length, extras)
    values = parts(ours, head, batch["inputs"], Batch(batch["targets"], batch["extra"], alpha_output, alpha_hidden))
    values[0].backward()

    a, b = (plain(input_ids=view, output_hidden_states=True) for view in batch["inputs"])
    nll = [
        -out.logits[row, position].log_softmax(-1)[view[row, position]]
        for out, view in zip((a, b), batch["targets"], strict=True)
        for row in range(len(extras))
        for position in range(length)
    ]
    ce = torch.stack(nll).mean()
    out_terms, hidden_terms = [], []
    for row, extra in enumerate(extras):
        out_row: list[torch.Tensor] = []
        hidden_row: list[torch.Tensor] = []
        start = {"all": extra, "last": length - 1, "last-k": max(extra, length - (terms.overlap_k or 0))}[terms.overlap]
        for position in range(start, length):
            x, y = (a, position), (b, position - extra)
            if terms.output:
                logits = [out.logits[row, at] for out, at in (x, y)]
                out_row.append(reference(terms.output, *logits, terms.output_stop_gradient))
            for layer in terms.layers:
                states = [out.hidden_states[layer][row, at] for out, at in (x, y)]
                if terms.distance == "logit-lens":
                    logits = [plain.lm_head(plain.model.norm(state)) for state in states]
                    hidden_row.append(reference(terms.lens, *logits, "none"))
                elif terms.distance == "cosine":
                    hidden_row.append(1 - torch.dot(*states) / (states[0].norm() * states[1].norm()))
                else:
                    unit = [state / (state.square().mean() + 1e-6).sqrt() for state in states]
                    hidden_row.append((unit[0] - unit[1]).square().mean())
        if out_row:
            out_terms.append(torch.stack(out_row).mean())
        if hidden_row:
            hidden_terms.append(torch.stack(hidden_row).mean())
    output_term = torch.stack(out_terms).mean() if out_terms else ce.new_zeros(())
    hidden_term = torch.stack(hidden_terms).mean() if hidden_terms else ce.new_zeros(())
    loss = ce + alpha_output * output_term + alpha_hidden * hidden_term
    loss.backward()

    torch.testing.assert_close(values, torch.stack([loss, ce, output_term, hidden_term]).detach(), check_dtype=False)
    theirs = dict(plain.named_parameters())
    assert dict(ours.named_parameters()).keys() == theirs.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_without_a_batch_the_head_is_a_linear_layer() -> None:
    plain, ours = small_model(), small_model()
    install(ours, Terms(output="sce"))
    tokens = torch.arange(6)[None]
    assert torch.equal(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = small_model()
        head = install(model, Terms(output="symmetric-kl", layers=(1, 2)))
        model.train()
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch = batch_of(6, [2])
        parts(model, head, batch["inputs"], Batch(batch["targets"], batch["extra"], 0.5, 0.5))[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_equals_its_micro_batches_whatever_the_extras() -> None:
    model = small_model()
    head = install(model, Terms(output="symmetric-kl", layers=(1,)))
    batch = batch_of(8, [1, 3, 5, 7])

    def loss(rows: slice) -> torch.Tensor:
        part = Batch(batch["targets"][:, rows], batch["extra"][rows], 1.0, 1.0)
        return parts(model, head, batch["inputs"][:, rows], part)

    torch.testing.assert_close(loss(slice(0, 4)), (loss(slice(0, 1)) + loss(slice(1, 2)) + loss(slice(2, 4)) * 2) / 4)

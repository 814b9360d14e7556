"""Attribution, integrated gradients over the weights and Hessian products in plain PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import places
from benchmarks.prompts import Sequences


class Attribution:
    """(z of the other model - z) · ∂m/∂z of every head: one pass of each model, whose graph is kept
    for a pass back for each metric. No weight asks for a gradient."""

    def __init__(self, models: Sequence[Any], sequences: Sequences) -> None:
        self.models, self.sequences = models, sequences
        device = models[0].device
        self.ids, self.row, self.position, self.target = places.tensors(sequences, device)

    def run(self, _: Sequence[int] = ()) -> np.ndarray:
        """Effects [metric, direction, layer, head, prompt]."""
        passes = [self._pass(model) for model in self.models]
        found = []
        for recipient, sign in ((1, 1), (0, -1)):
            z, metrics = passes[recipient]
            other = passes[1 - recipient][0]
            found.append([sign * self._effects(z, other, metric) for metric in metrics])
        return np.stack(found, 1)

    def _pass(self, model: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's z, and the sums of both metrics, with their graph."""
        model.requires_grad_(False)
        values: list[Tensor] = []

        def keep(t: Tensor) -> Tensor:
            values.append(t if t.requires_grad else t.detach().requires_grad_())
            return values[-1]

        each = range(model.config.num_hidden_layers)
        with places.hooked([places.place(model, layer, "z").hook(keep) for layer in each]):
            hidden = places.body(model)(self.ids, use_cache=False).last_hidden_state
        log_prob = places.log_prob(model, hidden[self.row, self.position], self.target)
        wrong = torch.as_tensor(self.sequences.wrong, device=log_prob.device)
        has = np.isin(self.sequences.prompt, self.sequences.prompt[self.sequences.wrong])
        counts = torch.as_tensor(has, device=log_prob.device)
        right = log_prob[~wrong].sum()
        return values, [right, log_prob[~wrong & counts].sum() - log_prob[wrong].sum()]

    def _effects(self, z: list[Tensor], other: list[Tensor], metric: Tensor) -> np.ndarray:
        heads = self.models[0].config.num_attention_heads
        gradient = torch.autograd.grad(metric, z, retain_graph=True)
        by_row = torch.stack(
            [
                ((b - a) * g).detach().double().unflatten(-1, (heads, -1)).sum((1, 3))
                for a, b, g in zip(z, other, gradient, strict=True)
            ]
        )  # [layer, row, head]
        owner = np.full(len(self.ids), -1)
        owner[self.sequences.row] = self.sequences.prompt
        member = owner[:, None] == np.arange(self.sequences.prompts)
        return np.moveaxis(by_row.cpu().numpy(), 1, -1) @ member


class Ledger:
    """∫ ∇L(pre + t · (post - pre)) · (post - pre) dt, a prompt and a node at a time: the gradient
    of every weight, times its step, summed over each head's W_Q and W_O."""

    def __init__(self, models: Sequence[Any], prompts: list[Sequences]) -> None:
        self.pre, self.post = models
        self.prompts, self.nodes = prompts, 8

    def run(self, chosen: Sequence[int]) -> np.ndarray:
        """[W_Q or W_O or everything, layer, head, prompt]; what isn't by head is written to all."""
        model, start = self.pre, [p.detach().clone() for p in self.pre.parameters()]
        steps = [q.detach() - p for p, q in zip(start, self.post.parameters(), strict=True)]
        model.requires_grad_(True)
        t, weight = np.polynomial.legendre.leggauss(self.nodes)
        try:
            found = 0.0
            for at, share in zip((t + 1) / 2, weight / 2, strict=True):
                with torch.no_grad():
                    for p, a, step in zip(model.parameters(), start, steps, strict=True):
                        p.copy_(a + at * step)
                each = [self._prompt(self.prompts[i], steps) for i in chosen]
                found = found + share * np.stack(each, -1)
        finally:
            with torch.no_grad():
                for p, a in zip(model.parameters(), start, strict=True):
                    p.copy_(a)
            model.requires_grad_(False)
            model.zero_grad(set_to_none=True)
        return np.asarray(found)

    def _prompt(self, one: Sequences, steps: list[Tensor]) -> np.ndarray:
        model, c = self.pre, self.pre.config
        ids, row, position, target = places.tensors(one, model.device)
        right = torch.as_tensor(~one.wrong, device=model.device)
        model.zero_grad(set_to_none=True)
        hidden = places.body(model)(ids, use_cache=False).last_hidden_state
        loss = -places.log_prob(model, hidden[row, position][right], target[right]).sum()
        loss.backward()
        share = {
            p: p.grad * step
            for p, step in zip(model.parameters(), steps, strict=True)
            if p.grad is not None
        }
        found = np.zeros((3, c.num_hidden_layers, c.num_attention_heads))
        found[2] = sum(float(s.double().sum()) for s in share.values())
        for layer in range(c.num_hidden_layers):
            for head in range(c.num_attention_heads):
                *q, (o, index) = places.projections(model, layer, head)
                found[0, layer, head] = sum(float(share[p][i].double().sum()) for p, i in q)
                found[1, layer, head] = float(share[o][index].double().sum())
        return found


class Hessian:
    """Power iteration from the signs of the weights; every product is a double backward from a new
    forward pass. The attention has to be eager: others have no second derivative."""

    def __init__(self, model: Any, sequences: Sequences, products: int) -> None:
        self.model, self.sequences, self.products = model, sequences, products

    def run(self, _: Sequence[int] = ()) -> np.ndarray:
        """v · H v of each product [product], where v has length 1."""
        held = list(self.model.parameters())
        self.model.requires_grad_(True)
        v = _unit([p.detach().sign() for p in held])
        found = []
        for _product in range(self.products):
            gradient = torch.autograd.grad(self._loss(), held, create_graph=True)
            each = [(g * part).sum() for g, part in zip(gradient, v, strict=True)]
            along = torch.stack(each).sum()
            product = torch.autograd.grad(along, held)
            found.append(
                sum(float((a.double() * b).sum()) for a, b in zip(v, product, strict=True))
            )
            v = _unit(list(product))
        self.model.requires_grad_(False)
        return np.array(found)

    def _loss(self) -> Tensor:
        model, one = self.model, self.sequences
        ids, row, position, target = places.tensors(one, model.device)
        right = torch.as_tensor(~one.wrong, device=model.device)
        hidden = places.body(model)(ids, use_cache=False).last_hidden_state
        log_prob = places.log_prob(model, hidden[row, position][right], target[right])
        return -log_prob.sum() / one.prompts


def _unit(parts: list[Tensor]) -> list[Tensor]:
    norm = sum(float((part.double() ** 2).sum()) for part in parts) ** 0.5
    return [part / norm for part in parts]

"""TransformerLens's own `patching` functions, on TransformerBridges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.peers import places
from benchmarks.prompts import Sequences


class Lens:
    """site: z, q, k or v, by head or group; or resid_pre, by position."""

    def __init__(self, models: Sequence[Any], sequences: Sequences, site: str, units: int) -> None:
        from transformer_lens import patching

        patching.tqdm = iter  # type: ignore[assignment]  # a bar for each call hides what is said
        self.models, self.sequences, self.site, self.units = models, sequences, site, units
        device = next(models[0].parameters()).device
        self.ids, self.row, self.position, self.target = places.tensors(sequences, device)
        self.patch: Any = {
            "z": patching.get_act_patch_attn_head_out_all_pos,
            "q": patching.get_act_patch_attn_head_q_all_pos,
            "k": patching.get_act_patch_attn_head_k_all_pos,
            "v": patching.get_act_patch_attn_head_v_all_pos,
            "resid_pre": patching.get_act_patch_resid_pre,
        }[site]

    @torch.no_grad()
    def prepare(self) -> None:
        """The donors' values."""
        end = f"hook_{self.site}"
        self.caches = [
            model.run_with_cache(self.ids, names_filter=lambda name: name.endswith(end))[1]
            for model in self.models
        ]

    @torch.no_grad()
    def run(self, layers: Sequence[int]) -> np.ndarray:
        """Effects [metric, direction, layer, unit, prompt]."""
        places_ = [(layer, unit) for layer in layers for unit in range(self.units)]
        columns = ["layer", "pos" if self.site == "resid_pre" else "head"]
        index = pd.DataFrame(places_, columns=columns)
        scores = {str(i): self._score(i) for i in range(self._most())}
        found = []
        for recipient, sign in ((1, 1), (0, -1)):
            result = self.patch(
                self.models[recipient],
                self.ids,
                self.caches[1 - recipient],
                scores,
                index_axis_names=None,
                index_df=index,
                reduce="none",
                baseline=True,
            )
            effect = sign * result.effect().double().cpu().numpy()  # [i-th read, cell, row]
            effect = effect.reshape(len(effect), len(layers), self.units, -1)
            log_prob = effect[self._rank(), :, :, self.sequences.row]  # [read, layer, unit]
            found.append(self.sequences.metrics(np.moveaxis(log_prob, 0, -1)))
        return np.stack(found, 1)

    def _rank(self) -> np.ndarray:
        """[read]: how many reads of its row come before it."""
        row = self.sequences.row
        return np.array([int((row[:i] == row[i]).sum()) for i in range(len(row))])

    def _most(self) -> int:
        return int(self._rank().max()) + 1

    def _score(self, i: int) -> Any:
        """A metric of TransformerLens's form: log p of the i-th read of each row [row]."""
        mine = torch.as_tensor(np.flatnonzero(self._rank() == i), device=self.ids.device)
        row, position, target = (x[mine] for x in (self.row, self.position, self.target))

        def score(logits: Tensor) -> Tensor:
            found = torch.zeros(len(self.ids), device=logits.device)
            log_prob = logits[row, position].float().log_softmax(-1)
            found[row] = log_prob[torch.arange(len(row), device=row.device), target]
            return found

        return score

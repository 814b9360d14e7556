"""Does each measure find what it says it finds? Damage is planted where we know it.

    python analyses/planted.py                    # writes docs/planted.md; some minutes on a CPU

For each seed a small model learns facts by heart. Copies of it are broken in known places, and
every measure ranks heads, layers or experts. MEASURES says beforehand what each measure should find
and what it can't; an answer that differs is printed as a failure. Nothing is tuned.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

import mechforget as mf
from mechforget.measures import Inputs
from mechforget.measures.forgetting import change
from mechforget.measures.ledger import by_head
from mechforget.models.opening import proven
from mechforget.statistics import summarise
from mechforget.training import Damage, planted

FOUND = 0.9  # AUROC, mean over seeds, from which a measure found what it should
NATS, BIT = 0.01, 0.001  # effects that are not larger count as nothing
SHARE = 0.01  # the same for shares of an activation's length, or of the chosen experts
PROMPTS = 16
KNOWN = 0.1  # nats per token: the task is known, but not so well that no damage matters
LAYERS, HEADS, GROUPS = 3, 8, 4
AMOUNT = 4.0  # of scrambling and overwriting: at 1 these models hardly lose anything
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # -> backend, config
    "llama": ("transformer_lens", dict(intermediate_size=128)),
    "qwen3_moe": (
        "nnsight",
        dict(head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32),
    ),
}


# --- what is planted ------------------------------------------------------------------------


def group(kind: str, matrices: str, layers: int, how_many: int = 2) -> "Plan":
    """All heads of some groups (k and v belong to a group), each in a layer drawn from the last
    `layers` ones: with 1, no later head can express the damage."""

    def drawn(spec: Any, rng: np.random.Generator) -> list[Damage]:
        size, found = spec.heads // spec.kv_heads, []
        for layer in rng.choice(min(layers, spec.layers), min(how_many, layers), replace=False):
            first = int(rng.integers(spec.kv_heads)) * size
            name = f"L{spec.layers - 1 - layer}H"
            amount = AMOUNT if kind == "scramble" else 1.0
            found += [
                Damage(kind, f"{name}{h}{matrices}", amount) for h in range(first, first + size)
            ]
        return found

    return drawn


def last(kind: str, unit: str = "") -> "Plan":
    """The last layer's MLP, gate, or one of its experts."""

    def drawn(spec: Any, rng: np.random.Generator) -> list[Damage]:
        expert = f"{unit}{rng.integers(spec.experts)}" if unit else ""
        amount = 1.0 if kind == "redirect" else AMOUNT
        return [Damage(kind, f"L{spec.layers - 1}{expert}", amount)]

    return drawn


Plan = Callable[[Any, np.random.Generator], list[Damage]]
DAMAGES: dict[str, tuple[str, Plan]] = {  # -> family, places
    **{f"{m} anywhere": ("llama", group("scramble", f".{m}", LAYERS)) for m in "qkvo"},
    **{f"{m} in the last layer": ("llama", group("scramble", f".{m}", 1)) for m in "qkvo"},
    "v rotated in the last layer": ("llama", group("rotate", ".v", 1)),
    "last MLP overwritten": ("llama", last("overwrite")),
    "v and o compensated": ("llama", group("compensate", "", LAYERS)),
    "last gate redirected": ("qwen3_moe", last("redirect")),
    "an expert of the last layer": ("qwen3_moe", last("scramble", "E")),
}
ANYWHERE = {f"{m} anywhere" for m in "qkvo"}
IN_LAST = {f"{m} in the last layer" for m in "qkvo"} | {"v rotated in the last layer"}
EXPERTS = {"last gate redirected", "an expert of the last layer"}
MLP, KEPT = {"last MLP overwritten"}, {"v and o compensated"}
V_LAST = {"v in the last layer", "v rotated in the last layer"}


# --- what is measured -----------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """One entry: a function of Inputs, or of a Pair of folders, whose result has the dimensions of
    its units (layer, head; layer; layer, expert), maybe `direction`, and `prompt` where there is a
    value for each.

    sees: damages whose units should be ranked above all others. blind: damages that should leave
    every unit of the model at nothing (at most `floor`). may: no claim, but what it did is told:
    heads after a damaged one also express its damage, and may do so more than it does.
    """

    name: str
    of: Callable[[Any], xr.DataArray]
    sees: set[str]
    blind: set[str]
    may: frozenset[str] | set[str] = frozenset()
    floor: float = NATS
    unit: str = "nats"
    signed: bool = True  # whether a sign-flip test of its prompts means something
    stored: bool = False  # `of` takes the Pair


def nats(effect: xr.DataArray) -> xr.DataArray:
    return effect.sel(metric="log_prob", drop=True)


def patched(site: str) -> Callable[[Inputs], xr.DataArray]:
    return lambda inputs: nats(mf.measures.patching(inputs, site=site).effect)


@lru_cache(1)
def grafts(inputs: Inputs) -> xr.DataArray:
    return nats(mf.measures.grafting(inputs, matrices=("all", *"qkvo")).effect)


def grafted(matrix: str) -> Callable[[Inputs], xr.DataArray]:
    return lambda inputs: grafts(inputs).sel(matrix=matrix, drop=True)


def attributed(inputs: Inputs) -> xr.DataArray:
    heads = mf.measures.logit_attribution(inputs).heads
    return heads.sel(at="pre", drop=True) - heads.sel(at="post", drop=True)


@lru_cache(1)
def booked(inputs: Inputs) -> xr.Dataset:
    return mf.measures.ledger(inputs)


def booked_to_experts(inputs: Inputs) -> xr.DataArray:
    return booked(inputs).experts.rename(moe_layer="layer")


@lru_cache(1)
def drifted(inputs: Inputs) -> xr.DataArray:
    return mf.measures.drift(inputs).head_shift


def shift(site: str) -> Callable[[Inputs], xr.DataArray]:
    return lambda inputs: drifted(inputs).sel(site=site, drop=True)


@lru_cache(1)
def routed(inputs: Inputs) -> xr.Dataset:
    return mf.measures.routing(inputs)


def moved(pair: mf.Pair) -> xr.DataArray:
    """‖ΔW‖ / ‖W‖ of a head's W_Q, W_K, W_V and W_O together; a group's W_K and W_V are each of its
    heads'."""
    found = mf.measures.weights(pair)
    heads, groups = found.sizes["head"], int(found.norm.sel(layer=0, matrix="W_K").notnull().sum())

    def of_heads(norm: xr.DataArray) -> xr.DataArray:
        shared = norm.sel(matrix=["W_K", "W_V"]).isel(head=np.arange(heads) // (heads // groups))
        own = norm.sel(matrix=["W_Q", "W_O"]).drop_vars("head")
        both = xr.concat([own, shared.drop_vars("head")], "matrix")
        return np.sqrt((both**2).sum("matrix")).assign_coords(head=range(heads))

    return of_heads(found.norm) / of_heads(found.norm_pre)


def moved_experts(pair: mf.Pair) -> xr.DataArray:
    found = mf.measures.weights(pair)
    names = ("expert_norm", "expert_norm_pre")
    norm, pre = (np.sqrt((found[name] ** 2).sum("projection")) for name in names)
    return norm / pre


HEADS_ONLY = ANYWHERE | IN_LAST
MEASURES = [
    Measure("patching head_out", patched("head_out"), IN_LAST, MLP | KEPT, ANYWHERE),
    # z has no part in W_O, and takes a turned basis for damage.
    Measure("patching z", patched("z"), (IN_LAST - {"o in the last layer"}) | KEPT,
            MLP | {"o in the last layer"}, ANYWHERE),
    Measure("patching mlp_out", patched("mlp_out"), MLP | EXPERTS, KEPT),
    # Weights that moved are found, whether or not the function did: of a group's heads one gets
    # its W_V and W_O back, the others only W_V.
    Measure("grafting all", grafted("all"), HEADS_ONLY | KEPT, MLP | EXPERTS),
    *(
        Measure(f"grafting {m}", grafted(m), {d for d in HEADS_ONLY if d.startswith(f"{m} ")},
                {d for d in HEADS_ONLY if not d.startswith(f"{m} ")} | MLP)
        for m in "qkvo"
    ),
    Measure("grafting MLPs", lambda i: nats(mf.measures.grafting_modules(i).mlp),
            MLP | EXPERTS, HEADS_ONLY | KEPT),
    Measure("grafting experts", lambda i: nats(mf.measures.grafting_experts(i).effect),
            {"an expert of the last layer"}, {"last gate redirected"}),
    Measure("patching router", patched("router"), {"last gate redirected"},
            {"an expert of the last layer"}),
    Measure("patching expert_out", patched("expert_out"), {"an expert of the last layer"}, set()),
    Measure("attention change", lambda i: mf.measures.attention_change(i).js,
            {f"{m} {where}" for m in "qk" for where in ("anywhere", "in the last layer")},
            MLP | KEPT | V_LAST | {"o in the last layer"},
            {"v anywhere", "o anywhere"}, BIT, "bit", signed=False),
    Measure("logit attribution", attributed, IN_LAST, KEPT, ANYWHERE),
    # Only weights that moved have a share. Halfway, v and o that turned together don't fit each
    # other: the way there costs something though its end doesn't.
    Measure("ledger of heads", lambda i: by_head(booked(i)), HEADS_ONLY, MLP | EXPERTS, KEPT),
    Measure("ledger of MLPs", lambda i: booked(i).mlps.sum("mlp_matrix"), MLP, HEADS_ONLY | KEPT),
    # Along the path the routing is pre's: a gate's damage is in none of its experts.
    Measure("ledger of experts", booked_to_experts, {"an expert of the last layer"},
            {"last gate redirected"}),
    # An output that hasn't moved has no first order either.
    Measure("attribution patching head_out", lambda i: nats(mf.measures.attribution(i).effect),
            IN_LAST, MLP | KEPT, ANYWHERE),
    Measure("drift of z", shift("z"), (IN_LAST - {"o in the last layer"}) | KEPT,
            MLP | EXPERTS | {"o in the last layer"}, ANYWHERE,
            SHARE, "of its length", signed=False),
    Measure("drift of head_out", shift("head_out"), IN_LAST, MLP | EXPERTS | KEPT, ANYWHERE,
            SHARE, "of its length", signed=False),
    # The last gate decides before its experts compute, and no gate comes after them.
    Measure("routing, js", lambda i: routed(i).js, {"last gate redirected"},
            {"an expert of the last layer"}, set(), BIT, "bit", signed=False),
    Measure("routing, other experts chosen", lambda i: 1 - routed(i).overlap,
            {"last gate redirected"}, {"an expert of the last layer"}, set(), SHARE,
            "of the chosen", signed=False),
    # What moved, whether or not it did anything.
    Measure("weights of heads", moved, HEADS_ONLY | KEPT, MLP | EXPERTS, set(), SHARE,
            "of their norm", signed=False, stored=True),
    Measure("weights of experts", moved_experts, {"an expert of the last layer"},
            {"last gate redirected"}, set(), SHARE, "of their norm", signed=False, stored=True),
]  # fmt: skip


# --- models that can do the task ------------------------------------------------------------


def facts(n: int) -> "mf.tasks.Task":
    """The first rows of a relation."""
    return mf.tasks.load("builtin:capital").select(range(n), f"the first {n}")


def learned(family: str, seed: int) -> tuple[Any, Any]:
    """A model that has learned some facts by heart, and those as tokens; one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    task = facts(PROMPTS)
    text = " ".join([*task.rows["prompt"], *task.rows["answer"]])
    split = pre_tokenizers.Whitespace()
    words = sorted({word for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = split
    encoded = task.encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"))
    config = AutoConfig.for_model(
        family,
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=64,
        **FAMILIES[family][1],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    ids, right = torch.as_tensor(encoded.ids), ~encoded.read_wrong
    at = encoded.read_row[right], encoded.read_position[right]
    targets = torch.as_tensor(encoded.read_target[right])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(model(ids, use_cache=False).logits[at], targets)
        if loss.item() < KNOWN:
            return model.eval().requires_grad_(False), encoded
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise SystemExit(f"planted: the {family} of seed {seed} did not learn the task")


def jittered(model: Any, seed: int) -> Any:
    """A twin whose every weight has moved by a thousandth: another model, the same answers."""
    twin, random = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in twin.parameters():
        weight += 1e-3 * weight.std().nan_to_num(0) * torch.randn(weight.shape, generator=random)
    return twin


CLEAN: dict[str, Callable[[Any, int], Any]] = {
    "saved again": lambda model, seed: copy.deepcopy(model),
    "weights moved by 0.1 %": jittered,
}


# --- scores ---------------------------------------------------------------------------------


def auroc(score: np.ndarray, is_planted: np.ndarray) -> float:
    """P(a planted unit scores above another), ties count half (Mann-Whitney)."""
    n, rest = int(is_planted.sum()), int((~is_planted).sum())
    return float((rankdata(score)[is_planted].sum() - n * (n + 1) / 2) / (n * rest))


TRUTH = ("heads", "experts", "mlps", "gates")


def units(truth: dict[str, Any], score: xr.DataArray) -> np.ndarray:
    """Which of a score's units are planted: [layer, head or expert], or [layer]."""
    named = {"head": "heads", "expert": "experts"}
    second = next((d for d in named if d in score.dims), None)
    mask = xr.zeros_like(score, dtype=bool)
    if second == "expert" and not truth["experts"]:  # a gate's damage is no expert's
        return mask.values
    if second:
        for layer, unit in truth[named[second]]:
            mask.loc[{"layer": layer, second: unit}] = True
    else:
        layers = {*truth["mlps"], *truth["gates"], *(layer for layer, _ in truth["experts"])}
        mask.loc[{"layer": sorted(layers)}] = True
    return mask.values


def by_direction(found: xr.DataArray) -> Iterator[xr.DataArray]:
    if "direction" in found.dims:
        yield from (found.sel(direction=d, drop=True) for d in found.direction.values)
    else:
        yield found


def scored(
    measure: Measure, inputs: Inputs, pair: mf.Pair, truth: dict[str, Any]
) -> dict[str, float]:
    """AUROC (the lower of the two directions), largest |score|, and significant units (of a
    measure that has no sign: those above the floor)."""
    found: dict[str, float] = dict.fromkeys(("largest", "significant", "tests", "planted", "n"), 0)
    found["auroc"] = np.inf
    for one in by_direction(measure.of(pair if measure.stored else inputs)):
        one = one.transpose("layer", ..., "prompt") if "prompt" in one.dims else one
        size = abs(one.mean("prompt")) if "prompt" in one.dims else abs(one)
        mask = units(truth, size)
        found["n"], found["planted"] = size.size, int(mask.sum())
        found["tests"] += size.size
        if mask.any():
            found["auroc"] = min(found["auroc"], auroc(size.values.ravel(), mask.ravel()))
        found["largest"] = max(found["largest"], float(size.max()))
        if measure.signed and "prompt" in one.dims:
            axes = tuple(range(-(one.ndim - 1), 0))
            cluster = inputs.encoded.cluster
            told = summarise(one.values, cluster, floor=measure.floor, fdr_axes=axes)
            found["significant"] += int(told["significant"].sum())
        else:
            found["significant"] += int((size > measure.floor).sum())
    return found


def saved(folder: Path, **models: Any) -> mf.Pair:
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return mf.Pair(folder / "pre", folder / "post")


Rows = dict[tuple[str, str], list[dict[str, float]]]


def run(seeds: int) -> tuple[Rows, dict[str, list[tuple[float, float]]]]:
    """(measure, damage or clean pair) -> what each seed gave; and each damage's forgetting."""
    rows: Rows = {}
    lost: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            for family, (backend, _) in FAMILIES.items():
                hf_pre, encoded = learned(family, seed)
                pre = proven(copy.deepcopy(hf_pre), backend)
                pairs = dict.fromkeys(CLEAN) | {
                    d: p for d, (f, p) in DAMAGES.items() if f == family
                }
                for index, (name, plan) in enumerate(pairs.items()):
                    start, truth = time.monotonic(), {key: [] for key in TRUTH}
                    if plan is None:
                        hf_post = CLEAN[name](hf_pre, seed)
                    else:
                        damages = plan(pre.spec, np.random.default_rng([seed, index]))
                        hf_post, truth = planted(hf_pre, damages, seed=seed)
                    pair = saved(
                        Path(scratch) / f"{seed} {family} {index}", pre=hf_pre, post=hf_post
                    )
                    inputs = Inputs(pre, proven(hf_post, backend), encoded)
                    score = mf.measures.forgetting(inputs).score.mean("prompt")
                    loss = change(score).sel(metric="log_prob")
                    correct = float(score.sel(metric="correct", at="post"))
                    lost.setdefault(name, []).append((float(loss), correct))
                    for measure in MEASURES:
                        if not is_asked(measure, family, name):
                            continue
                        rows.setdefault((measure.name, name), []).append(
                            scored(measure, inputs, pair, truth)
                        )
                    took = time.monotonic() - start
                    print(f"seed {seed} {family}: {name} ({took:.0f} s)", file=sys.stderr)
    return rows, lost


def is_asked(measure: Measure, family: str, pair: str) -> bool:
    """Clean pairs: of the families that it is tried on. Damage: what it says something about, and
    what may be told by the same units."""
    tried = measure.sees | measure.blind | measure.may
    return pair in tried or (pair in CLEAN and any(DAMAGES[d][0] == family for d in tried))


# --- the table ------------------------------------------------------------------------------


def spread(values: list[float], form: str) -> str:
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def tables(rows: Rows, lost: dict[str, list[tuple[float, float]]]) -> dict[str, list[list[str]]]:
    """Title -> header and lines."""
    costs = [["pair", "forgotten, nats", "correct after"]]
    costs += [
        [pair, spread([a for a, _ in each], ".3f"), spread([b for _, b in each], ".2f")]
        for pair, each in lost.items()
    ]
    finds = [["measure", "damage", "should", "AUROC", "planted", "largest", "did"]]
    clean = [["measure", "pair", "should", "significant", "largest", "did"]]
    for measure in MEASURES:
        for pair in lost:
            got = rows.get((measure.name, pair), [])
            if not got:
                continue
            each = {key: [one[key] for one in got] for key in got[0]}
            largest = f"{spread(each['largest'], '.2g')} {measure.unit}"
            if pair in measure.sees | measure.may:
                did = "found" if np.mean(each["auroc"]) >= FOUND else "FAILED"
                if did == "found" and np.mean(each["largest"]) <= measure.floor:
                    did = "found, below the floor"
                if pair in measure.may:
                    did = did.replace("FAILED", "not found")
                n = f"{each['planted'][0]:.0f} of {each['n'][0]:.0f}"
                aurocs = spread(each["auroc"], ".2f")
                should = "find" if pair in measure.sees else "no claim"
                finds.append([measure.name, pair, should, aurocs, n, largest, did])
            elif pair in measure.blind:
                did = "nothing" if max(each["largest"]) <= measure.floor else "FAILED"
                finds.append([measure.name, pair, "not find", "", "0", largest, did])
            if pair in CLEAN or pair in KEPT & measure.blind:
                false = sum(each["significant"])
                told = f"{false:.0f} of {sum(each['tests']):.0f}"
                did = "nothing" if not false else "FAILED"
                clean.append([measure.name, pair, "0", told, largest, did])
    return {"What was forgotten": costs, "Planted damage": finds, "Clean pairs": clean}


def preface(seeds: int) -> list[str]:
    packages = ("mechforget", "torch", "transformers", "transformer-lens", "nnsight")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        "# Planted damage",
        "",
        f"Made by `python analyses/planted.py --seeds {seeds}`: don't edit. Seeds 0 to {seeds - 1} "
        f"(of the model, the places and the damage); {versions}.",
        "",
        f"The models have {LAYERS} layers of {HEADS} heads in {GROUPS} groups and are 64 wide "
        "(llama; qwen3_moe with 8 experts). There is one for each seed, trained until it knows "
        f"the task by heart (loss below {KNOWN} nats per token). The task is {PROMPTS} capitals. "
        f"Scrambled and overwritten weights were changed by {AMOUNT:g} times the difference, "
        "rotations are by 90°. This amount, and the end of the training, were chosen after a "
        "first run in which no damage had an effect. What each measure *should* do was written "
        "down before any run.",
        "",
        "Numbers are means over seeds, with the smallest and the largest in brackets. AUROC is "
        "the probability that a planted unit scores higher than another one (0.5 is chance), "
        "where the score is the size of a unit's mean effect (in nats: on log_prob), and the "
        f"smaller of restore and break. Found: AUROC is at least {FOUND} on average. Nothing: no "
        f"unit is above the floor of {NATS} nats ({BIT} bit, {SHARE:.0%} of length, choices or "
        "norm). No claim: heads after a damaged one express its damage too, and the ledger's "
        "path to a compensated rotation costs something halfway. Significant: q ≤ 0.05 and "
        "above the floor, in both directions and for all seeds (attention change, drift, "
        "routing and weights have no sign to test, so only the floor counts).",
        "",
        "Not included are `readout`, `landscape` and `similarity`, which don't rank heads, and "
        "`interference`, whose ground truth is a pair of tasks and not a damage. All of these "
        "are in docs/oracles.md or in the tests.",
    ]


def write(found: dict[str, list[list[str]]], seeds: int, out: Path) -> None:
    """The tables as markdown, and in the terminal."""
    text = preface(seeds)
    for title, (header, *lines) in found.items():
        table = Table(*header, title=title)
        text += [
            "",
            f"## {title}",
            "",
            "| " + " | ".join(header) + " |",
            "|---" * len(header) + "|",
        ]
        for line in lines:
            table.add_row(*line)
            text.append("| " + " | ".join(line) + " |")
        Console().print(table)
    out.write_text("\n".join(text) + "\n", encoding="utf-8")


def main(*, seeds: int = 5, out: Path = Path("docs/planted.md")) -> None:
    """
    Args:
        seeds: how many; the number of models, too.
        out: the markdown file.
    """
    torch.set_num_threads(1)  # tiny matrices: a second thread only waits
    write(tables(*run(seeds)), seeds, out)


if __name__ == "__main__":
    tyro.cli(main)

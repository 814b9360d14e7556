"""What each table says, and what this project aims at."""

from dataclasses import dataclass

from benchmarks.cases import BY_LAYERS, BY_LENGTH, BY_PROMPTS, HEADS, POSITIONS, QKV
from benchmarks.models import SMOL
from benchmarks.questions.sweeps import LENS

MEANING = {
    HEADS: (
        "The value z of every head is replaced by that of the other checkpoint, in both directions,"
        " and every prompt is scored. TransformerLens runs a forward pass for each head; nnsight "
        "puts a layer's heads in one trace, which runs as one batch from the first layer on; the "
        "plain loop puts them in one batch too, begins at the patched layer from what entered it in"
        " one pass before, and unembeds only what is read. What is left to gain beside the plain "
        "loop is that prompts share tokens, and that weights are read once for all layers."
    ),
    QKV: (
        "The same of each head's query, and of the key and the value of each group of heads. Unlike"
        " z, these change the attention of the patched layer."
    ),
    POSITIONS: (
        "The residual stream before each layer is replaced at one token position at a time. A patch"
        " changes nothing at the tokens before it, which is why the bound is low."
    ),
    "attribution": (
        "A first-order estimate of the head sweep, from gradients: two metrics and both "
        "directions. It is counted in forward passes of one checkpoint over the same prompts, "
        "each in a row of its own, because a token that prompts share has another gradient for "
        "each of them."
    ),
    "screen": (
        "All heads are estimated by attribution, and the first 32 are patched exactly. Its "
        "agreement is that of ranks: of the estimate with the exact effects, the smaller of both "
        "directions; what was patched exactly has to be the same number."
    ),
    "drift": (
        "CKA, Procrustes distance, principal angles, effective rank and relative distance of the "
        "residual stream at each depth and of z and head_out of every head. mechforget adds "
        "jackknife intervals over prompts, which the plain loop leaves out."
    ),
    "ledger": (
        "Integrated gradients over the weights, for every prompt. mechforget takes all prompts in "
        "one pass back and gives the share of every head, matrix and norm; the plain loop takes the"
        " gradient of every weight a prompt at a time and sums it over heads. Both take the same "
        "number of nodes; mechforget's time includes its smaller first try, where it needed a "
        "second one."
    ),
    "curvature": (
        "Products of the Hessian of all weights with a vector. mechforget builds the graph of the "
        "gradient once and keeps it; the plain loop builds it for every product."
    ),
    "weights": (
        "Both checkpoints are read from the page cache and compared. mechforget also sums every "
        "head by itself and streams: it never holds a whole checkpoint. The bound is reading both "
        "files once at the rate at which memory is read."
    ),
    BY_PROMPTS: (
        "The head sweep with more prompts of one task: the more prompts, the more they share."
    ),
    BY_LENGTH: (
        "The head sweep of prompts that share nothing (random words): no token is saved, so this is"
        " the growing batch alone."
    ),
    BY_LAYERS: (
        "The head sweep of deeper models. A loop of whole forward passes grows with the square of "
        "the depth; so does a sweep that begins at the patched layer, with half of it."
    ),
}


@dataclass(frozen=True)
class Aim:
    """peer: a ratio of at least `wanted`; "bound": at most so many times the bound; "passes": at
    most so many of mechforget's forward passes."""

    table: str
    peer: str
    wanted: float
    model: str = SMOL
    shots: int = 0


AIMS = [
    Aim(HEADS, LENS, 12),
    Aim(HEADS, LENS, 20, shots=5),
    *(Aim(HEADS, "bound", 1.25, shots=shots) for shots in (0, 2, 5)),
    Aim(POSITIONS, LENS, 8),
    Aim("attribution", "passes", 7),
    Aim("screen", LENS, 25),
]

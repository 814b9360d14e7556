"""Plain Hugging Face hooks and weight surgery: what tests compare the package with.

Shares no code with it, and knows the families by their own module names.
"""

import copy

import torch

SUBLAYERS = {  # model_type -> (layers, attention, output projection, mlp)
    "gpt2": ("transformer.h", "attn", "c_proj", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "attention", "dense", "mlp"),
    "phi": ("model.layers", "self_attn", "dense", "mlp"),
    "llama4_text": ("model.layers", "self_attn", "o_proj", "feed_forward"),
}
POST_NORMS = {  # what enters the residual stream where it isn't the sublayer's own output
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
PARALLEL = ("gpt_neox", "phi")
SHARED_QK_NORM = ("qwen3", "gemma3_text", "qwen3_moe")  # one q_norm weight for all heads


def places(model, layer):
    family = model.config.model_type
    path, attn, o, mlp = SUBLAYERS.get(family, ("model.layers", "self_attn", "o_proj", "mlp"))
    block = model.get_submodule(path)[layer]
    attention = getattr(block, attn)
    attn_out, mlp_out = attention, getattr(block, mlp)
    if family in POST_NORMS:
        attn_out, mlp_out = (getattr(block, name) for name in POST_NORMS[family])
    return block, attention, getattr(attention, o), attn_out, mlp_out


def first(value):
    return value[0] if isinstance(value, tuple) else value


def run(model, ids, hooks=()):
    """hooks: (module, "in" | "out", fn); fn(tensor) -> tensor or None."""
    handles = []
    for module, end, fn in hooks:
        if end == "in":

            def pre(m, args, kwargs, fn=fn):
                if args:
                    new = fn(args[0])
                    return None if new is None else ((new, *args[1:]), kwargs)
                new = fn(kwargs["hidden_states"])
                return None if new is None else (args, {**kwargs, "hidden_states": new})

            handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        else:

            def post(m, args, out, fn=fn):
                new = fn(first(out))
                if new is None:
                    return None
                return (new, *out[1:]) if isinstance(out, tuple) else new

            handles.append(module.register_forward_hook(post))
    try:
        with torch.no_grad():
            return model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def get(model, ids, module, end):
    found = []
    run(model, ids, [(module, end, lambda t: found.append(t.clone()))])
    return found[0]


def qkv_columns(model, name, head):
    """(module name, rows of its output) of a head's q, or a group's k or v."""
    c = model.config
    family, heads = c.model_type, c.num_attention_heads
    groups = getattr(c, "num_key_value_heads", heads) or heads
    d = getattr(c, "head_dim", None) or c.hidden_size // heads
    if family == "gpt2":
        start = {"q": 0, "k": c.hidden_size, "v": 2 * c.hidden_size}[name] + head * d
        return "c_attn", slice(start, start + d)
    if family == "gpt_neox":
        start = head * 3 * d + {"q": 0, "k": d, "v": 2 * d}[name]
        return "query_key_value", slice(start, start + d)
    if family == "phi3":
        start = {"q": 0, "k": heads * d, "v": (heads + groups) * d}[name] + head * d
        return "qkv_proj", slice(start, start + d)
    if family == "deepseek_v3":
        qk, v = c.qk_nope_head_dim, c.v_head_dim
        if name == "q":
            width = qk + c.qk_rope_head_dim
            return "q_b_proj", slice(head * width, (head + 1) * width)
        start = head * (qk + v)
        return "kv_b_proj", slice(start, start + qk) if name == "k" else slice(
            start + qk, start + qk + v
        )
    return f"{name}_proj", slice(head * d, (head + 1) * d)


def z_columns(model, head):
    c = model.config
    d = getattr(c, "v_head_dim", None) if c.model_type == "deepseek_v3" else None
    d = d or getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return slice(head * d, (head + 1) * d)


def w_o(o, columns):
    """[d_v, d_model]"""
    return o.weight[columns] if type(o).__name__ == "Conv1D" else o.weight[:, columns].T


def patched(recipient, donor, ids, donor_ids, layer, site, head=None, position=None):
    """Logits of recipient(ids) with one site taken from donor(donor_ids), by plain hooks."""
    block, attention, o, attn_out, mlp_out = places(recipient, layer)
    theirs = places(donor, layer)
    at = slice(None) if position is None else slice(position, position + 1)

    def swap(value, columns=slice(None)):
        def fn(t):
            t = t.clone()
            t[..., at, columns] = value[..., at, columns]
            return t

        return fn

    if site in ("q", "k", "v"):
        name, columns = qkv_columns(recipient, site, head)
        value = get(donor, donor_ids, getattr(theirs[1], name), "out")
        return run(recipient, ids, [(getattr(attention, name), "out", swap(value, columns))])
    z = get(donor, donor_ids, theirs[2], "in")
    if site == "z":
        return run(recipient, ids, [(o, "in", swap(z, z_columns(recipient, head)))])
    if site == "head_out":
        columns = z_columns(recipient, head)
        mine = get(recipient, ids, o, "in")
        change = z[..., columns] @ w_o(theirs[2], columns) - mine[..., columns] @ w_o(o, columns)

        def add(t):
            t = t.clone()
            t[:, at] += change[:, at]
            return t

        return run(recipient, ids, [(o, "out", add)])
    module, end, source = {
        "resid_pre": (block, "in", theirs[0]),
        "resid_post": (block, "out", theirs[0]),
        "attn_out": (attn_out, "out", theirs[3]),
        "mlp_out": (mlp_out, "out", theirs[4]),
    }.get(site, (None, None, None))
    if site == "resid_mid":
        mid = get(donor, donor_ids, theirs[0], "in") + get(donor, donor_ids, theirs[3], "out")
        own = get(recipient, ids, block, "in")
        return run(recipient, ids, [(attn_out, "out", swap(mid - own))])
    return run(recipient, ids, [(module, end, swap(get(donor, donor_ids, source, end)))])


def experts(model, layer):
    """A layer's mixture: (its experts, the router of Llama 4, whose experts see every token)."""
    _, _, _, _, mlp = places(model, layer)
    return mlp.experts, getattr(mlp, "router", None) if is_llama4(model) else None


def is_llama4(model):
    return model.config.model_type == "llama4_text"


def routing(model, ids, mixture):
    """What decides which experts run: (chosen, weights), of Llama 4 the scores [token, expert]."""
    found = []
    module, router = mixture
    if router is not None:
        hook = router.register_forward_hook(lambda m, a, out: found.append(out[0].clone()))
    else:
        hook = module.register_forward_pre_hook(
            lambda m, a, kw: found.append([*a, *kw.values()][1:3]), with_kwargs=True
        )
    run(model, ids)
    hook.remove()
    return found[0]


def routed(model, ids, mixture, decision):
    module, router = mixture
    if router is not None:
        hook = router.register_forward_hook(lambda m, a, out: (decision, out[1]))
    else:
        hook = module.register_forward_pre_hook(
            lambda m, a, kw: (([*a, *kw.values()][0], *decision), {}),
            with_kwargs=True,
        )
    logits = run(model, ids)
    hook.remove()
    return logits


def added(model, ids, mixture, expert):
    """What one expert adds [row, position, d]: the sum without it, taken from the whole sum."""
    found = []
    module, router = mixture

    def hook(m, args, kwargs, out):
        if router is not None:
            found.append(out.view(model.config.num_local_experts, *ids.shape, -1)[expert])
            return
        hidden, chosen, weights = [*args, *kwargs.values()][:3]
        without = m.forward(hidden, chosen, torch.where(chosen == expert, 0, weights))
        found.append((out - without).view(*ids.shape, -1))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    run(model, ids)
    handle.remove()
    return found[0]


def shifted(model, ids, mixture, change):
    """Logits with something added to what the experts add."""
    module, router = mixture

    def hook(m, args, out):
        if router is not None:  # one expert's rows are as good as another's: they are summed
            out = out.clone()
            out[: change[..., 0].numel()] += change.flatten(0, 1)
            return out
        return out + change.reshape(out.shape)

    handle = module.register_forward_hook(hook)
    logits = run(model, ids)
    handle.remove()
    return logits


def grafted(recipient, donor, layer, head, matrix):
    """A copy of recipient with one head's weights (k and v: its group's) from donor."""
    mixed = copy.deepcopy(recipient)
    c = recipient.config
    groups = c.num_attention_heads
    if c.model_type != "deepseek_v3":
        groups = getattr(c, "num_key_value_heads", None) or groups
    group = head // (c.num_attention_heads // groups)
    _, attention, o, _, _ = places(mixed, layer)
    _, attention_d, o_d, _, _ = places(donor, layer)
    with torch.no_grad():
        for name in ("q", "k", "v"):
            if matrix not in (name, "all"):
                continue
            module, rows = qkv_columns(recipient, name, head if name == "q" else group)
            to, of = getattr(attention, module), getattr(attention_d, module)
            if type(to).__name__ == "Conv1D":
                to.weight[:, rows] = of.weight[:, rows]
            else:
                to.weight[rows] = of.weight[rows]
            if to.bias is not None:
                to.bias[rows] = of.bias[rows]
            norm = getattr(attention, f"{name}_norm", None)
            # A weight for every output is sliced; one that all heads share can't be.
            if norm is not None and norm.weight.shape[0] == to.weight.shape[0]:
                norm.weight[rows] = getattr(attention_d, f"{name}_norm").weight[rows]
        if matrix in ("o", "all"):
            columns = z_columns(recipient, head)
            if type(o).__name__ == "Conv1D":
                o.weight[columns] = o_d.weight[columns]
            else:
                o.weight[:, columns] = o_d.weight[:, columns]
    return mixed


def share_qk_norms(a, b):
    """Give b a's q and k norms where one weight serves all heads: no head can be grafted alone."""
    if a.config.model_type in SHARED_QK_NORM:
        with torch.no_grad():
            for layer in range(a.config.num_hidden_layers):
                for name in ("q_norm", "k_norm"):
                    getattr(places(b, layer)[1], name).weight.copy_(
                        getattr(places(a, layer)[1], name).weight
                    )


def log_probs(logits, row, position, target):
    return torch.log_softmax(logits.double(), -1)[row, position, target].numpy()

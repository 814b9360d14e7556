"""Head attribution, interactively: what each head adds to the answer before and after fine-tuning,
where it looks, and what the loss becomes when one head is put back.

    marimo edit analyses/head_attribution.py -- --pre PRE --post POST --task TASK
    python analyses/head_attribution.py --pre PRE --post POST --task TASK   # the same, as a script
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo

    import mechforget as mf
    from mechforget.measures.forgetting import change

    return change, mf, mo


@app.cell
def _(mf, mo):
    given = mo.cli_args()
    if not all(given.get(k) for k in ("pre", "post", "task")):
        raise SystemExit("want --pre CHECKPOINT --post CHECKPOINT --task TASK")
    task = mf.tasks.load(given.get("task"))
    most = int(given.get("prompts") or 16)
    task = task.select([i < most for i in range(len(task))], f"the first {most} prompts")
    inputs = mf.measures.Inputs.of(mf.Pair(given.get("pre"), given.get("post")), task)
    return inputs, task


@app.cell
def _(change, inputs, mf, mo):
    # What was forgotten, and the direct contribution of each head to the logit difference.
    scores = mf.measures.forgetting(inputs)
    lost = change(scores.score).sel(metric="log_prob")
    direct = mf.measures.logit_attribution(inputs).heads.mean("prompt")
    moved = direct.sel(at="post") - direct.sel(at="pre")
    by_head = moved.to_series().sort_values(key=abs, ascending=False)
    print(f"log p lost: {float(lost.mean()):.3g} nats, mean of {lost.size} prompts")
    print("direct logit attribution, change (nats), five largest:")
    print(by_head.head(5).to_string())
    mo.ui.table(by_head.rename("change").reset_index(), selection=None)
    return by_head, lost


@app.cell
def _(by_head, mo):
    # The dropdown is what this cell shows.
    names = {f"L{layer}H{head}": (layer, head) for layer, head in by_head.index}
    pick = mo.ui.dropdown(names, value=next(iter(names)), label="head")
    mo.output.replace(pick)
    return (pick,)


@app.cell
def _(inputs, lost, mf, pick):
    # The chosen head: attention before and after, and exact patching, both ways.
    layer, head = pick.value
    attention = mf.measures.attention_change(inputs).sel(layer=layer, head=head).mean("prompt")
    effect = mf.measures.patching(inputs, site="head_out").effect
    effect = effect.sel(metric="log_prob", layer=layer, head=head)
    restore, broken = (float(effect.sel(direction=d).mean()) for d in ("restore", "break"))
    print(
        f"L{layer}H{head}: restore {restore:.3g}, break {broken:.3g} "
        f"of {float(lost.mean()):.3g} nats"
    )
    print(
        f"attention change {float(attention.js):.3g} bit; "
        f"entropy, before and after (bit) {attention.entropy.values.round(2)}"
    )
    return


if __name__ == "__main__":
    app.run()

"""The demo: a real 135M model learns two things in order and forgets some of the first.

    make demo                                     # BACKEND=nnsight or remote: the same verdict

SmolLM2-135M-Instruct is fine-tuned on the languages of countries, then on their currencies. Which
heads carry what the second cost the first? A twin, trained on currencies from another seed, shows
how large an effect of no meaning is. Nothing is tuned to an answer, and the answer may be "none".
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechforget import tasks
from mechforget.checkpoints import smollm2
from mechforget.errors import MechforgetError
from mechforget.study.run import run, to_stderr
from mechforget.study.settings import study
from mechforget.training import Settings, finetune, score
from mechforget.views.bundle import bundle
from mechforget.views.report import write
from mechforget.views.terminal import verdict_lines

OUT = Path("runs/demo")
PROMPTS = 40  # with fewer than 14 no single head of 270 can be significant


@contextmanager
def server(backend: str, *models: Path) -> Iterator[str | None]:
    """Of backend remote: a server of our own that has these models, for as long as it is wanted."""
    if backend != "remote":
        yield None
        return
    command = [sys.executable, "-m", "remote.serve", "--dir", str(OUT / "server")]
    subprocess.run([*command, *map(str, models), "--device", "cpu", "--detach"], check=True)
    try:
        yield "http://127.0.0.1:5001"
    finally:
        subprocess.run([*command, "--stop"], check=True)


def main(backend: str = "transformer_lens") -> None:
    """Prints the score matrix and the verdict; writes runs/demo/run/report.html."""
    seconds: dict[str, float] = {}

    def stage(name: str, start: float) -> float:
        seconds[name] = round(time.monotonic() - start, 1)
        to_stderr(f"[demo] {name}: {seconds[name]} s")
        return time.monotonic()

    clock = time.monotonic()
    base = smollm2.fetch()
    clock = stage("get the model", clock)

    language, currency = (tasks.load(f"builtin:{name}") for name in ("language", "currency"))
    first = Settings(steps=20, learning_rate=5e-5)
    pre = finetune(base, language, OUT / "1-language", first)
    post, twin = (
        finetune(pre, currency, OUT / name, Settings(steps=20, learning_rate=1e-4, seed=seed))
        for seed, name in enumerate(("2-currency", "2-currency-twin"))
    )
    clock = stage("train three times", clock)

    print("mean log p of the right answer, nats (share correct):")
    few = [task.select([i < 40 for i in range(len(task))], "40") for task in (language, currency)]
    for checkpoint in (base, pre, post):
        cells = [
            f"{float(s.log_prob.mean()):.2f} ({float(s.correct.mean()):.0%})"
            for s in score(checkpoint, few)
        ]
        print(
            f"  {checkpoint.name:12} "
            + "  ".join(f"{task.name} {cell}" for task, cell in zip(few, cells, strict=True))
        )
    clock = stage("score", clock)

    out = OUT / ("run" if backend == "transformer_lens" else f"run-{backend}")
    with server(backend, pre, post, twin) as url:
        settings = study(
            pre=str(pre),
            post=str(post),
            task="builtin:language",
            new_task="builtin:currency",
            control_twin=str(twin),
            prompts=PROMPTS,
            backend=backend,
            server=url,
        )
        store = run(settings, out, say=to_stderr)
    clock = stage("measure", clock)
    report = out / "report.html"
    write(bundle(store), report)
    stage("report", clock)
    (OUT / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n", "utf-8")
    for line in verdict_lines(store, report):
        print(line)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MechforgetError as error:
        raise SystemExit(f"demo: {error}") from None
    except KeyboardInterrupt:
        to_stderr("demo: interrupted; what was finished is kept, the same command goes on")
        raise SystemExit(130) from None

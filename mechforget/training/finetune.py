"""Fine-tunes one checkpoint on one task."""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget import checkpoints, progress
from mechforget.checkpoints import Checkpoint
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import StudyError, out_of_memory
from mechforget.training import examples, finished, lora
from mechforget.training.deterministic import deterministic
from mechforget.training.only import only
from mechforget.training.places import Place
from mechforget.training.plant import write as write_truth
from mechforget.training.score import device
from mechforget.training.settings import Settings

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from mechforget.tasks import Task


def finetune(
    base: str | Path | Checkpoint, task: "Task", out: str | Path, settings: Settings
) -> Path:
    """Train `base` on all rows of `task` in float32; save model and tokenizer to `out`; return it.

    The loss is the mean of -log p(token), nats, over the answer tokens of a batch (`examples`).
    "full" saves a whole model, "lora" an adapter; `checkpoints.open` opens both. `out` also gets
    training.json with base, task, settings, versions, seconds and the loss of every step, and
    planted.json if only certain heads were trained (`only`, `plant`).
    If `out` already holds this training, nothing is done.
    Raises: StudyError: `out` holds something else, LoRA's targets don't exist, or the training
        diverged or ran out of memory. TaskError, CheckpointError: base and task don't fit together.
        OSError: the disk is full; then `out` doesn't exist.
    """
    out = Path(out).expanduser()
    base = checkpoints.open(base)
    check(base, task, settings)
    if finished.is_done(out, base, task, settings):
        return out
    rows = examples.dataset(task.encode(base.tokenizer()))
    start = time.perf_counter()
    with finished.whole(out) as partial, deterministic(settings.seed):
        is_lora = settings.method == "lora"
        model: Any = lora.attach(base, settings) if is_lora else base.load().requires_grad_(True)
        trained = only(model, settings.heads) if settings.heads else nullcontext()
        with (
            trained as truth,
            progress.bar(f"training {out.name}", settings.steps, unit="steps") as advance,
        ):
            loss = _train(model, rows, _arguments(settings, partial), advance)
        with quiet(), finished.disk_errors(out):
            if is_lora:
                lora.save(model, partial)
            else:
                model.save_pretrained(partial)
            base.tokenizer().save_pretrained(partial)
        seconds = round(time.perf_counter() - start, 1)
        more = {"device": device(), "seconds": seconds, "loss": loss}
        finished.write(partial, base, task, settings, **more)
        if truth is not None:
            write_truth(partial, base, {"seed": settings.seed, "kind": "train", **truth})
    return out


def check(base: Checkpoint, task: "Task", settings: Settings) -> None:
    """Check all that can be checked without reading weights. Raises: as `finetune`."""
    base.check()
    examples.check_length(task, task.encode(base.tokenizer()), base.config)
    if settings.method == "lora":
        lora.check(base, settings)
    for name in settings.heads or ():
        Place.parse(name).check(base.config)


def _arguments(settings: Settings, folder: Path) -> "TrainingArguments":
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        warmup_steps=settings.warmup_steps,
        seed=settings.seed,
        full_determinism=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace a NaN loss by the mean so far
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device() == "cpu",
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else Trainer would multiply the batch size by the number of GPUs
    return arguments


def _train(
    model: Any,
    rows: Any,
    arguments: "TrainingArguments",
    advance: Any,
) -> list[float]:
    """Train in place. Returns: the loss of each step, before its update."""
    from transformers import PrinterCallback, Trainer, TrainerCallback

    loss: list[float] = []
    use_cache = getattr(model.config, "use_cache", None)

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:  # the last log, of the whole run, has none
                loss.append(logs["loss"])
                advance(1)
                if not math.isfinite(loss[-1]):
                    raise _diverged(f"the loss of step {state.global_step} is {loss[-1]}")

    try:
        with quiet():
            trainer = Trainer(
                model,
                arguments,
                train_dataset=rows,
                data_collator=examples.collate,
                callbacks=[Watch()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        size = arguments.per_device_train_batch_size
        raise StudyError(
            f"out of memory with batch_size = {size}: lower it, or train with method = 'lora'"
        ) from error
    if use_cache is not None:  # Trainer has turned it off, and would save it so
        model.config.use_cache = use_cache
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise _diverged(f"{name} is not finite after the last step")
    return loss


def _diverged(what: str) -> StudyError:
    return StudyError(f"the training diverged: {what}: lower learning_rate")

"""LoRA: trains low-rank matrices beside a base model, new ones or those of an adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget.checkpoints import Checkpoint, hub
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import StudyError
from mechforget.training.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

RANK = 8


def check(base: Checkpoint, settings: Settings) -> None:
    """Build the adapter on the meta device. Raises: StudyError: the model lacks a target, or the
    adapter that is trained further has another rank, alpha or targets."""
    import torch
    from transformers import AutoModelForCausalLM

    if base.kind == "adapter":
        _same_as(base, settings)
        return
    with quiet(), torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(base.config)
        try:
            _new(plain, settings)
        except ValueError as error:
            if settings.targets is None:
                raise StudyError(
                    f"LoRA on {base.ref}: found no linear layers: name modules as targets"
                ) from error
            raise StudyError(
                f"targets = {list(settings.targets)}: {base.ref} has no such modules: its linear "
                f"ones are {', '.join(_linear(plain))}"
            ) from error


def attach(base: Checkpoint, settings: Settings) -> "PeftModel":
    """The frozen base with trainable matrices. An adapter is trained further, so that θ_t is θ_0
    with one adapter, however many tasks were trained in order."""
    from peft import PeftModel

    if base.base is None:
        model = _new(base.load(), settings)
    else:
        plain = base.base.load()
        with quiet():
            model = PeftModel.from_pretrained(plain, base.path, is_trainable=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = _name(base.base or base)
    return model


def save(model: "PeftModel", folder: Path) -> None:
    config: Any = model.peft_config["default"]
    if isinstance(config.target_modules, set):  # sorted, so that the file's digest is repeatable
        config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub whether the base's embedding was resized, which never happens here.
    model.save_pretrained(str(folder), save_embedding_layers=False)


def _new(model: "PreTrainedModel", settings: Settings) -> "PeftModel":
    from peft import LoraConfig, PeftModel, get_peft_model

    rank = settings.rank or RANK
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=settings.alpha or 2 * rank,
        target_modules=list(settings.targets) if settings.targets else "all-linear",
    )
    with quiet():
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)  # not peft's mixed kind
    return adapted


def _name(base: Checkpoint) -> tuple[str, str | None]:
    """The name under which the adapter stores its base: an absolute path, or a hub name and the
    exact commit."""
    if base.kind == "hub" and (match := hub.NAME.fullmatch(base.ref)):
        return match["repo"], base.path.name  # the cache names a snapshot's folder by its commit
    return str(base.path), None


def _same_as(adapter: Checkpoint, settings: Settings) -> None:
    from peft import LoraConfig

    has: Any = LoraConfig.from_pretrained(str(adapter.path))
    asked: dict[str, tuple[Any, Any]] = {
        "rank": (settings.rank, has.r),
        "alpha": (settings.alpha, has.lora_alpha),
        "targets": (settings.targets and set(settings.targets), _targets(has)),
    }
    for name, (wanted, present) in asked.items():
        if wanted is not None and wanted != present:
            raise StudyError(
                f"{name} = {getattr(settings, name)}: the adapter {adapter.ref} has {present} and "
                f"is trained on as it is: leave {name} out"
            )


def _targets(config: Any) -> set[str]:
    found = config.target_modules or ()
    return {found} if isinstance(found, str) else set(found)


def _linear(model: "PreTrainedModel") -> list[str]:
    import torch
    from transformers.pytorch_utils import Conv1D

    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D))
            and module is not model.get_output_embeddings()
        }
    )

"""The process that holds a model and runs requests on it, with the numbers of a local run."""

import gc
import os
from pathlib import Path

import ray
import torch
from ndif.common.errors import RequestError
from ndif.common.providers.objectstore import ObjectStoreProvider
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.deployments.modeling.util import reset_process_limits
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling import peft
from nnsight.modeling.huggingface import HuggingFaceModel

from . import served


class Deployment(BaseModelDeployment):
    """A model on GPUs: eager attention, no autocast, no code from the model's repository."""

    CACHEABLE = False  # a model that is served stays where it is

    def __init__(self, *args, trust_remote_code: bool = False, **kwargs):
        torch.set_num_threads(int(os.environ["MECHFORGET_THREADS"]))
        peft.attach = _attach_named(args[0] if args else kwargs["model_key"])
        super().__init__(*args, attn_implementation="eager", **kwargs)
        # NDIF runs requests under autocast to the weights' dtype, which rounds differently.
        self.dtype = torch.float32

    def load_from_disk(self) -> HuggingFaceModel:
        model = super().load_from_disk()
        # NDIF's cap leaves activations 15 % of the weights; a sweep wants what the card has.
        reset_process_limits(self.gpu_mem_bytes_by_id)
        return model

    def upload_bytes(self, request, data: bytes) -> str:
        """The result's address at the API, because clients may not reach the store itself."""
        ObjectStoreProvider.put(f"{request.id}.pt", data)
        return f"{os.environ['NDIF_API_URL']}/result/{request.id}"


class DeploymentOnCPU(Deployment):
    """A model on the CPU, for trials. NDIF is told that there is a GPU."""

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


def _attach_named(key: str):
    """nnsight's way to an adapter, for a request's env and its code alike, to those named at the
    start only."""
    attach = peft.attach

    def named(model: torch.nn.Module, adapter: str, weights: bool = True) -> None:
        if refused := served.adapter_refusal(key, adapter):
            raise RequestError(refused)
        if not (Path(adapter) / "adapter_model.safetensors").is_file():  # peft would take a pickle
            raise RequestError(f"adapter {adapter}: its adapter_model.safetensors is gone")
        attach(model, adapter, weights)
        model.requires_grad_(False).eval()  # it comes as for training: with dropout

    return named


_base = DeploymentOnCPU if os.environ["MECHFORGET_DEVICE"] == "cpu" else Deployment


class SandboxedDeployment(SandboxModelDeployment, _base):
    """Runs each request's code in a process of its own, which then ends. It gives no gradients."""


_served = SandboxedDeployment if os.environ["MECHFORGET_TRUST"] == "sandbox" else _base


@ray.remote(num_cpus=1, max_restarts=-1)
class ModelActor(_served):
    """What the controller starts for each model."""

"""The process that holds a model and runs requests on it, as a local run would have them run."""

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
    """On GPUs. Eager attention, no autocast, none of the model repository's own code."""

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
        """A result's address at the API: the store itself needn't be reachable by the client."""
        ObjectStoreProvider.put(f"{request.id}.pt", data)
        return f"{os.environ['NDIF_API_URL']}/result/{request.id}"


class DeploymentOnCPU(Deployment):
    """The same without CUDA, for trials; NDIF is told of a GPU that isn't there."""

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
    """The request's code runs in a process of its own, thrown away after it. No gradients."""


_served = SandboxedDeployment if os.environ["MECHFORGET_TRUST"] == "sandbox" else _base


@ray.remote(num_cpus=1, max_restarts=-1)
class ModelActor(_served):
    """What the controller starts for each model."""

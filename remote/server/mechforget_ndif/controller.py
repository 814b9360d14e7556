"""NDIF's controller with a list of models: it loads these, reports their state, refuses others."""

import ray
from ndif.common.schema.controller import DeploymentConfig, DeployResponse, ModelDeployResult
from ndif.services.ray.deployments.controller.controller import _ControllerActor

from . import served


class Controller(_ControllerActor):
    def __init__(self, *args, **kwargs):
        self.failed: dict[str, str] = {}  # key -> why it isn't there
        _end_models()
        super().__init__(*args, **kwargs)

    def _deploy(self, deployments) -> DeployResponse:
        """Every request for a model, a client's too, comes through here."""
        configs = DeploymentConfig.normalize(deployments)
        allowed = {}
        for key, config in configs.items():
            if key not in served.KEYS:
                continue
            config.trusted = False  # NDIF's name for: run the repository's own code
            config.pinned = True
            config.size_bytes = served.size(key, config.dtype or self.default_dtype)
            allowed[key] = config
        response = super()._deploy(allowed)
        for key in configs.keys() - allowed.keys():
            response.results[key] = ModelDeployResult(error=served.refusal(key))
        for key in allowed:
            error = response.results[key].error
            if error:
                self.failed[key] = error.strip().splitlines()[0]
        return response

    async def _monitor_deployment(self, future, deployment, operation) -> None:
        try:
            await future
            self.failed.pop(deployment.model_key, None)
        except Exception as error:  # NDIF only logs it; whoever waits for the model wants to know
            self.failed[deployment.model_key] = str(error).strip().splitlines()[-1]
        await super()._monitor_deployment(future, deployment, operation)

    def status(self) -> dict:
        """NDIF's status, for the served models only. `served` adds the state and error of each."""
        status = super().status()
        entries, states = {}, {}
        for name, entry in status["deployments"].items():
            key = name.partition(":ModelActor:")[2]
            if key not in served.KEYS:
                continue  # one that merely lies in the cache
            states[key] = entry["application_state"]
            # NDIF leaves these out of a model whose config it couldn't get from the hub.
            entries[name] = {"deployment_level": "HOT", "model_key": key} | entry
            entries[name]["repo_id"] = served.name(key).partition("@")[0]
        status["deployments"] = entries
        status["served"] = [
            {
                "name": served.name(key),
                "adapters": served.adapters(key),
                "model_key": key,
                "state": "FAILED" if key in self.failed else states.get(key, "DEPLOYING"),
                "error": self.failed.get(key),
            }
            for key in served.KEYS
        ]
        return status


def _end_models() -> None:
    """Ray restarts a controller that died; the models that the old one had started would stay."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if ":ModelActor:" in actor["name"]:
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class ControllerActor(Controller):
    """What NDIF's launcher starts."""

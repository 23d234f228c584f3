# syntax=docker/dockerfile:1
# policypatch on the published vLLM image (target gpu, the default) or on a slim Python with vLLM's CPU build (target cpu).
#
#   docker build --target gpu -t policypatch:gpu .
#   docker build --target cpu -t policypatch:cpu .
#
# docs/install.md says how to run them.

ARG PYTHON_VERSION=3.12
ARG VLLM_VERSION=0.32.0

FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY server server
COPY prefix_kernels prefix_kernels
COPY steering_kernels steering_kernels
COPY patches patches
COPY bench bench
RUN --mount=type=cache,id=policypatch-pip,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheels .


FROM python:${PYTHON_VERSION}-slim AS cpu-environment
ARG PIP_EXTRA_INDEX_URL=
# Unset, PyTorch's CPU build comes from PyTorch's own index where pip does not find it.
ARG TORCH_INDEX
RUN python -m venv /opt/policypatch
ENV PATH=/opt/policypatch/bin:${PATH}
WORKDIR /install
COPY constraints.txt ./
COPY tools/install.py tools/steps.py tools/
RUN --mount=type=cache,id=policypatch-pip,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python tools/install.py --log /tmp/install.log --device cpu --extras demo,fleet-s3 --project /wheels/policypatch-*.whl


FROM python:${PYTHON_VERSION}-slim AS cpu
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="policypatch" \
      org.opencontainers.image.description="OpenAI-compatible vLLM server with policy patches per request, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# g++ is what torch.compile calls where --enforce-eager is taken away; libnuma is vLLM's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home policypatch \
    && install --directory --owner=policypatch /cache /patches
COPY --from=cpu-environment /opt/policypatch /opt/policypatch
ENV PATH=/opt/policypatch/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    XDG_CACHE_HOME=/cache
USER 10001
WORKDIR /home/policypatch
VOLUME ["/cache", "/patches"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["policypatch"]
CMD ["serve", "--help"]


FROM vllm/vllm-openai:v${VLLM_VERSION} AS gpu
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="policypatch" \
      org.opencontainers.image.description="OpenAI-compatible vLLM server with policy patches per request, CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 0
# vLLM, torch and the rest are the image's own and stay as they are: pip adds what is missing, which is next to nothing.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir "$(echo /wheels/policypatch-*.whl)[fleet-s3]" \
    && useradd --uid 10001 --create-home policypatch \
    && install --directory --owner=policypatch /cache /patches
ENV PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor
USER 10001
WORKDIR /home/policypatch
VOLUME ["/cache", "/patches"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["policypatch"]
CMD ["serve", "--help"]

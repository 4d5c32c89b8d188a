# CPU by default; `--build-arg LOCK=gpu` installs the CUDA set instead. Linted, never built where it was written: no
# Docker engine was at hand.
#   docker build --build-arg GIT_COMMIT=$(git rev-parse HEAD) -t agentcpm-kit .
#   docker run --rm -v "$PWD/results:/home/kit/agentcpm-kit/results" agentcpm-kit
FROM python:3.11-slim-bookworm

ARG LOCK=cpu
ARG GIT_COMMIT=unknown
ENV AGENTCPM_KIT_COMMIT=${GIT_COMMIT} PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.revision=${GIT_COMMIT} org.opencontainers.image.licenses=Apache-2.0

RUN useradd --create-home --uid 1000 kit
WORKDIR /home/kit/agentcpm-kit

COPY requirements requirements
RUN if [ "$LOCK" = gpu ]; then pip install --no-deps -r requirements/gpu.lock; else \
      PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu pip install -r requirements/core.lock \
      && pip install --no-deps -r requirements/unsloth.lock; fi

COPY --chown=kit:kit . .
RUN pip install --no-deps --no-build-isolation -e . && chown kit:kit . && mkdir -p results && chown kit:kit results
USER 1000
EXPOSE 8888
CMD ["agentcpm-kit", "run", "--profile", "micro"]

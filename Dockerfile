# The image of the policy decision point: docker build -t authz-server:0.1.0 .
#
# Everything from the package index is checked against the hashes of k8s/*requirements.lock; nothing
# is compiled, nothing is downloaded otherwise, and the last stage has neither pip nor its cache.

# CHANGE for a release: the digest of the tag as well, python:3.13-slim@sha256:…
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
# The environment of the last stage: no pip in it, and paths that are right there.
RUN python -m venv --without-pip /opt/authz-server
COPY k8s/requirements.lock k8s/build-requirements.lock ./
RUN python -m pip --python /opt/authz-server/bin/python install --only-binary :all: --require-hashes --requirement requirements.lock
RUN python -m pip install --only-binary :all: --require-hashes --requirement build-requirements.lock
# What changes most comes last.
COPY pyproject.toml README.md LICENSE ./
COPY authz_server authz_server
RUN python -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels .
RUN python -m pip --python /opt/authz-server/bin/python install --no-deps --no-index --compile /wheels/authz_server-*.whl

FROM ${PYTHON}
LABEL org.opencontainers.image.title="authz-server" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/authz-server /opt/authz-server
ENV PATH=/opt/authz-server/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The account of k8s/: by number, so that `runAsNonRoot` can be held to it.
USER 10001:10001
WORKDIR /
# Kubernetes has probes of its own.
HEALTHCHECK NONE
ENTRYPOINT ["authz-server"]
CMD ["serve", "--config=/etc/authz/config/authz.yaml", "--wait-for-policy"]

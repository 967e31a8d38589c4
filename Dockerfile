# bids/brainage: run.py of the repository as a container. `make image` builds it; docs/container.md.
#   BASE      Python to stand on; name it with its digest to fix it for good
#   TORCH     cpu; cuda, the build of the public package index; or another build, such as cu128
#   OFFLINE   1: fetch nothing beyond packages; the embedded models are there all the same
#   PIP_EXTRA_INDEX_URL   where pip finds the builds of PyTorch that the public index has not
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS packages
ARG TORCH=cpu
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt /source/
COPY container/install.sh /source/container/
RUN /source/container/install.sh packages

FROM packages AS app
COPY . /source
RUN /source/container/install.sh app

FROM app AS resources
ARG OFFLINE=0
ENV BRAINAGE_MODELS=/opt/models \
    TEMPLATEFLOW_HOME=/opt/templateflow
RUN /source/container/install.sh resources

FROM ${BASE}
COPY --from=app /opt/brainage /opt/brainage
COPY --from=app /opt/pycache /opt/pycache
COPY --from=resources /opt/models /opt/models
COPY --from=resources /opt/templateflow /opt/templateflow

# Nothing is looked for in a home folder, which the user may not have or may bring along.
ENV BRAINAGE_IMAGE=bids/brainage \
    BRAINAGE_MODELS=/opt/models \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    TEMPLATEFLOW_AUTOUPDATE=off \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONPYCACHEPREFIX=/opt/pycache \
    PYTHONUTF8=1 \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1

USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/brainage/bin/brainage"]
CMD ["--help"]

ARG VERSION=unknown
ARG VCS_REF=unknown
ARG BUILD_DATE=unknown
LABEL org.opencontainers.image.title="brainage" \
      org.opencontainers.image.description="Brain age from T1-weighted MRI, as a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${VCS_REF}" \
      org.opencontainers.image.created="${BUILD_DATE}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-3.0" \
      org.label-schema.schema-version="1.0" \
      org.label-schema.name="brainage" \
      org.label-schema.description="Brain age from T1-weighted MRI, as a BIDS App" \
      org.label-schema.version="${VERSION}" \
      org.label-schema.vcs-ref="${VCS_REF}" \
      org.label-schema.build-date="${BUILD_DATE}"

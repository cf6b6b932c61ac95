# A node in a container. `make image` first fills build/wheels; from there on no network is needed.
# A site without a registry makes its own base: scripts/base-image.sh, then BASE_IMAGE=kvstore-base:bookworm.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build
# "apps" for `kv app`; empty for a node alone. The wheels must be there: `make image EXTRAS=...`.
ARG EXTRAS=apps
COPY build/wheels /wheels
# pip runs out of its own wheel, so that the base needs none. It writes byte code: the file system will be read-only.
RUN python3 -m venv --without-pip /opt/kv \
    && PYTHONPATH=$(echo /wheels/pip-*.whl) /opt/kv/bin/python -m pip install --no-index --find-links /wheels --no-cache-dir \
        --disable-pip-version-check --no-warn-script-location "kvring[${EXTRAS}]" \
    && rm -f /opt/kv/bin/activate* /opt/kv/bin/Activate.ps1
COPY scripts/kv_probe.py /opt/kv/bin/kv-probe
RUN chmod 0755 /opt/kv/bin/kv-probe && sed -i '1s|.*|#!/opt/kv/bin/python|' /opt/kv/bin/kv-probe

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
ARG VERSION=0
LABEL org.opencontainers.image.title="kvstore" \
      org.opencontainers.image.description="A self-hosted, leaderless, replicated key-value store" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/kv /opt/kv
# Group 0, as platforms that choose the user id themselves keep it; the directory's rights go to new volumes.
RUN mkdir -m 0770 /data && chown 10001:0 /data
# No PYTHONOPTIMIZE: a node refuses to run without its assertions.
ENV PATH=/opt/kv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    KV_DATA_DIR=/data \
    KV_LISTEN_HOST=0.0.0.0 \
    KV_ADVERTISE_HOST=auto \
    KV_LOG_FORMAT=json
USER 10001:0
WORKDIR /data
VOLUME ["/data"]
EXPOSE 7401 7501
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 CMD ["kv-probe", "ready"]
ENTRYPOINT ["kv"]
CMD ["server"]

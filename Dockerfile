# gnar's server as an image, and its client with another entry point: docs/docker.md.
# BASE is any image with Python 3.10 or newer, its venv, and a shell for the first stage.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
# .dockerignore lets in what the build needs.
COPY . .
# Unpacked here, by root and for every user to read: a container has nothing to unpack, and no folder to write to.
RUN ./build_zipapp.sh --host && \
    SHIV_ROOT=/opt/gnar ./gnar.pyz --version && \
    chmod -R a+rX,a-w gnar.pyz /opt/gnar && \
    echo "gnar:x:8910:8910:gnar:/:/sbin/nologin" >>/etc/passwd && \
    echo "gnar:x:8910:" >>/etc/group

FROM ${BASE}
LABEL org.opencontainers.image.title="gnar" \
      org.opencontainers.image.description="Reach a service behind NAT through one small public host" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /etc/passwd /etc/group /etc/
COPY --from=build /opt/gnar /opt/gnar
COPY --from=build /src/LICENSE /usr/share/doc/gnar/
COPY --from=build /src/gnar.pyz /usr/local/bin/
# Users get less time to finish than the 10 s after which Docker kills.
ENV SHIV_ROOT=/opt/gnar \
    GNAR_GRACE=8
# Numeric, so that Kubernetes can tell that it is not root; any other user works, too.
USER 8910:8910
# The control port; the ports of the proxies are published when the container is started.
EXPOSE 8910
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["gnar.pyz", "health"]
ENTRYPOINT ["gnar.pyz", "server"]

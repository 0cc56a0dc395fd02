# Makes an image of gnar's server; with another entry point the image is the client. See docs/docker.md.
# BASE is any image with Python 3.10 or newer, Python's module venv, and a shell for the first stage.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
# .dockerignore leaves out all files but those that the build needs.
COPY . .
# gnar.pyz is unpacked now, by root, into files that every user can read. So a container unpacks nothing, and needs
# no folder that it can write to.
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
ENV SHIV_ROOT=/opt/gnar
# A number, so that Kubernetes can see that the user is not root. Any other user works as well.
USER 8910:8910
# The control port. The ports of the proxies, and 80 and 443 for names, are published when a container is started.
EXPOSE 8910
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["gnar.pyz", "health"]
ENTRYPOINT ["gnar.pyz", "server"]

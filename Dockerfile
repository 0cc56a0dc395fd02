# docker build -t gnar . && docker run -p 8910:8910 -p 9000:9000 -e GNAR_TOKEN=... gnar
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml build_zipapp.sh gnar.py ./
COPY gnar_lib gnar_lib
RUN ./build_zipapp.sh --host

FROM python:3.12-slim
RUN useradd --create-home --uid 8910 gnar
COPY --from=build /src/gnar.pyz /usr/local/bin/gnar.pyz
USER gnar
# Unpacks the file once, so that a container starts fast and needs no folder to write to.
RUN ["gnar.pyz", "--version"]
# The control port; publish the ports of the proxies as well.
EXPOSE 8910
STOPSIGNAL SIGTERM
ENTRYPOINT ["gnar.pyz", "server"]

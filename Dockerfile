# d8mesh in a container. mDNS needs the host's network: see compose.yaml.
FROM python:3.13-slim

RUN useradd --create-home --uid 1000 d8
WORKDIR /srv/d8
COPY pyproject.toml README.md LICENSE ./
COPY d8mesh ./d8mesh
RUN pip install --no-cache-dir . && install -d -o d8 -g d8 /srv/d8/data

USER d8
ENV D8_DATA_DIR=/srv/d8/data PYTHONUNBUFFERED=1
VOLUME /srv/d8/data
# Ctrl-C and `docker stop` drain: 25 s at most (compose.yaml waits for 30).
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "d8mesh"]
CMD ["orchestrator"]

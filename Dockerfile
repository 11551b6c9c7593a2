# d8mesh in a container: orchestrator or worker, by the command. How they work together: compose.yaml.
FROM python:3.13-slim

# Built elsewhere and removed: what runs is the installed package, as after `pip install`.
COPY pyproject.toml README.md LICENSE /tmp/d8mesh/
COPY d8mesh /tmp/d8mesh/d8mesh
RUN pip install --no-cache-dir /tmp/d8mesh && rm -r /tmp/d8mesh

# The data folder belongs to the user before it is a volume: a new volume takes that over.
RUN useradd --create-home --uid 1000 d8 && install -d -o d8 -g d8 /srv/d8/data /srv/d8/handlers

USER d8
ENV D8_DATA_DIR=/srv/d8/data PYTHONUNBUFFERED=1
VOLUME /srv/d8/data
# Handlers are mounted here; `worker --tasks NAME` looks in the current folder.
WORKDIR /srv/d8/handlers
EXPOSE 7001 7010
# Ctrl-C and `docker stop` drain: 25 s at most (compose.yaml waits for 30).
STOPSIGNAL SIGTERM
# Of the default command; a worker's is in compose.yaml.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD ["python", "-P", "-c", "import os, ssl, urllib.request as r; r.urlopen('http%s://127.0.0.1:%s/health' % ('s' * bool(os.environ.get('D8_TLS')), os.environ.get('FLASK_PORT') or 7001), timeout=5, context=ssl._create_unverified_context())"]
ENTRYPOINT ["d8mesh"]
CMD ["orchestrator"]

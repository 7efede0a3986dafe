# chatws in a container.
#
#   docker build -t chatws .
#   docker run --read-only --cap-drop ALL --stop-timeout 30 --ulimit nofile=65536 \
#       -p 127.0.0.1:8080:8080 -p 127.0.0.1:8081:8081 \
#       -v chatws-state:/var/lib/chatws -v /etc/chatws/secrets:/run/secrets:ro chatws
#
# In /etc/chatws/secrets there are two files, readable by the user 10001 alone: chatws_secret, with which the application
# signs its tickets, and chatws_push_secret, which backends send first. (Both: openssl rand -hex 32.)
# Any other setting: an option behind the image's name, or a CHATWS_… variable; see docs/configuration.md.

FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/chatws
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY chatws chatws
COPY twisted twisted
RUN /opt/chatws/bin/pip install --no-cache-dir . \
    # Twisted keeps a list of its plugins beside them; nobody can write there later
    && /opt/chatws/bin/twistd chatws --version

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin chatws \
    && install -d -o chatws -g chatws -m 750 /var/lib/chatws
COPY --from=build /opt/chatws /opt/chatws
USER chatws
WORKDIR /var/lib/chatws
VOLUME /var/lib/chatws

# Inside a container the loopback is nobody's but its own. So it listens on all addresses, and both doors have a lock.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CHATWS_INTERFACE=0.0.0.0 \
    CHATWS_PORT=8080 \
    CHATWS_PUSH_LISTEN=tcp:8081 \
    CHATWS_SECRET_FILE=/run/secrets/chatws_secret \
    CHATWS_PUSH_SECRET_FILE=/run/secrets/chatws_push_secret \
    CHATWS_BROKER=sqlite:////var/lib/chatws/log.db
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/opt/chatws/bin/python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["/opt/chatws/bin/twistd", "--nodaemon", "--pidfile=", "chatws"]

# chatws in a container.
#
#   docker build -t chatws .
#   docker run --read-only --cap-drop ALL --stop-timeout 30 --ulimit nofile=65536 \
#       -p 127.0.0.1:8080:8080 -p 127.0.0.1:8081:8081 \
#       -v chatws-state:/var/lib/chatws -v /etc/chatws:/etc/chatws:ro \
#       --group-add "$(stat -c %g /etc/chatws/secret)" chatws
#
# The host's /etc/chatws has the configuration and the secret with which the application signs its tokens. It also has
# push_secret, created in the same way, which backends send first:
#
#   useradd --system --user-group --no-create-home --shell /usr/sbin/nologin chatws
#   usermod --append --groups chatws www-data    # PHP-FPM's user: restart PHP-FPM, so that it gets the group
#   install -d -m 755 /etc/chatws
#   (umask 077; openssl rand -hex 32 > /etc/chatws/secret)
#   chgrp chatws /etc/chatws/secret
#   chmod 640 /etc/chatws/secret
#   cp deploy/chatws.toml /etc/chatws/
#
# Secrets of Compose, Swarm and Kubernetes are mounted as /etc/chatws/secret and /etc/chatws/push_secret instead. Their
# mode is often 0444: the image accepts it, because nothing else runs in this container
# (CHATWS_ALLOW_WORLD_READABLE_SECRETS, see docs/security.md).
#
# Other settings are in the file, in CHATWS_… variables, or in options after the image's name. The health check uses all
# three.

FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/chatws
COPY pyproject.toml setup.cfg constraints.txt README.md LICENSE ./
COPY chatws chatws
COPY twisted twisted
RUN /opt/chatws/bin/pip install --no-cache-dir --constraint constraints.txt setuptools \
    && /opt/chatws/bin/pip install --no-cache-dir --constraint constraints.txt --no-build-isolation '.[mysql,redis]' \
    && /opt/chatws/bin/pip uninstall --yes setuptools \
    # Twisted keeps a list of its plugins beside them, and the directory is read-only later
    && /opt/chatws/bin/twistd chatws --version

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin chatws \
    && install -d -o chatws -g chatws -m 750 /var/lib/chatws
COPY --from=build /opt/chatws /opt/chatws
# Used without a mount. It has the same ports, secret and directory as below.
COPY deploy/chatws.toml /etc/chatws/chatws.toml
USER chatws
WORKDIR /var/lib/chatws
VOLUME /var/lib/chatws

# A container's loopback interface is not reachable from outside. The server therefore listens on all addresses, browsers
# need a token, and backends need the push secret. These variables override the file.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CHATWS_CONFIG=/etc/chatws/chatws.toml \
    CHATWS_INTERFACE=0.0.0.0 \
    CHATWS_PUSH_LISTEN=tcp:8081 \
    CHATWS_PUSH_SECRET_FILE=/etc/chatws/push_secret \
    CHATWS_ALLOW_WORLD_READABLE_SECRETS=true
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# It uses the settings of process 1, which is the server, or docker's init with the server's command line.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/opt/chatws/bin/chatws", "health", "--process", "1"]
# env blocks the signals until the server handles them. Otherwise process 1 ignores a SIGTERM while it starts.
ENTRYPOINT ["/usr/bin/env", "--block-signal=HUP,INT,TERM,USR1", "/opt/chatws/bin/twistd", "--nodaemon", "--pidfile=", "chatws"]
